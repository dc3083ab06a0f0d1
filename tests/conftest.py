"""Make a Celery app current whose broker refuses connections immediately."""

from __future__ import annotations

from celery import Celery

# Tests that need a broker configure one; in all others every ring is lost, as may always happen.
app = Celery("tests", broker="redis://127.0.0.1:1/0", set_as_current=True)
# Current in every thread, as a site's app is.
app.set_default()
