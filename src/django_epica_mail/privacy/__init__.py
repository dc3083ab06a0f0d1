"""Finds, exports and erases one person's data, and re-encrypts stored content."""
