"""What the queue costs, measured; never part of the tests' time."""
