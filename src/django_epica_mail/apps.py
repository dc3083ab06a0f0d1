"""The configuration of the Django app."""

from __future__ import annotations

import contextlib
import logging
import sys

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _

_IMPORTED_TO_SERVE = frozenset({"django.core.asgi", "django.core.wsgi"})
"""What a process that serves requests has imported before it loads the apps, and a command of
``manage.py`` has not."""


class EpicaMailConfig(AppConfig):
    """The app, with the label ``epica_mail``."""

    name = "django_epica_mail"
    label = "epica_mail"
    verbose_name = _("E-mail queue")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks, logging and signals, and the tasks even in processes that only ring.

        A process that serves requests also imports what its first ring needs.
        """
        from django_epica_mail import checks, schedule, signals, tasks  # noqa: F401
        from django_epica_mail.broker import doorbell
        from django_epica_mail.queueing.rendering.render import WithoutContext
        from django_epica_mail.tracking import webhooks

        signals.connect_logging()
        logging.getLogger("django.template").addFilter(WithoutContext())
        with contextlib.suppress(ImportError):  # anymail is an extra
            from anymail.signals import tracking

            tracking.connect(webhooks.receive, dispatch_uid="django_epica_mail.webhooks")
        if _IMPORTED_TO_SERVE.intersection(sys.modules):
            doorbell.prepare()
        post_migrate.connect(schedule.offer, dispatch_uid="django_epica_mail.schedule")
