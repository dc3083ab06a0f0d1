"""What every test has: a Celery app whose broker refuses each ring at once."""

from __future__ import annotations

from celery import Celery

# The suite's own current app. Tests that want a broker name one; to the others a ring is lost,
# as it may be at any time.
app = Celery("tests", broker="redis://127.0.0.1:1/0", set_as_current=True)
# Of every thread too, as the app of a site is that Django's settings module imports first.
app.set_default()
