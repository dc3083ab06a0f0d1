"""Templates: mail rendered from them, and their sample contexts."""
