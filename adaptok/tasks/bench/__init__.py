"""The reference benchmark: jobs of three tracks, their prices, and who runs them."""
