"""The fault suite: run a real site under injected faults, and count what arrives."""
