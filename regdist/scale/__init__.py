"""Devices, folders, chunks and sweeps. Knows no mathematics."""
