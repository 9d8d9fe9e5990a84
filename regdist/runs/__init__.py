"""Where a method goes."""
