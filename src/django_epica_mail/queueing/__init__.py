"""Before the commit: a message becomes rows in the caller's transaction."""
