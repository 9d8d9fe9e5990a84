"""Times of regdist beside its rivals, with their answers; `python -m benchmarks`."""
