"""How fast mail may go: what the site sets, and what servers show."""
