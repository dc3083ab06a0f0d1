"""Queue every e-mail of a Django site: transactional, durable, sent once, on Celery and Redis."""
