"""From parameters to log-probabilities, and distributions made from distributions."""
