"""How an optimum is found: a tilt, one strictly convex term, a sum of families, total variation."""
