"""Transports: which ones a site configures, the connections to them, and what is sent."""
