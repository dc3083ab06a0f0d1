"""What is said to Celery: rings, results, and questions to workers."""
