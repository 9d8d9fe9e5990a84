"""The known methods by name."""
