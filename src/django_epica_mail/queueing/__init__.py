"""Queueing: turns messages into rows in the caller's transaction."""
