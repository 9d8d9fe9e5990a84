"""The ground: records, log-probabilities, roots, spectra. Knows no problem."""
