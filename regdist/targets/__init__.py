"""The exact optimum, however it is asked for."""
