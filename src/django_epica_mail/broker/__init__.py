"""What goes through Celery: rings, results, and queries to workers."""
