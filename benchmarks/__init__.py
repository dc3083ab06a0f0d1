"""Measure what the queue costs; not part of the tests."""
