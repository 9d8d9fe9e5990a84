"""What is subtracted: divergence x anchor x coefficient."""
