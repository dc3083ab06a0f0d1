"""The example site. Importing it loads the Celery app, as Celery's Django guide requires."""

from shopsite.celery import app as celery_app

__all__ = ("celery_app",)
