"""The fault suite: the real thing under injected faults, and a count of what arrived."""
