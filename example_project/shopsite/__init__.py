"""The example site. Importing it makes the Celery app current, as Celery's Django page asks."""

from shopsite.celery import app as celery_app

__all__ = ("celery_app",)
