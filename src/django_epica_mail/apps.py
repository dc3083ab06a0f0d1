"""The configuration of the Django app."""

from __future__ import annotations

import contextlib
import logging

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class EpicaMailConfig(AppConfig):
    """The app, with the label ``epica_mail``."""

    name = "django_epica_mail"
    label = "epica_mail"
    verbose_name = _("E-mail queue")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks, logging and signals, and the tasks even in processes that only ring."""
        from django_epica_mail import checks, schedule, signals, tasks  # noqa: F401
        from django_epica_mail.queueing.render import WithoutContext
        from django_epica_mail.tracking import bounces, webhooks

        signals.connect_logging()
        signals.email_moved.connect(
            bounces.record_refusal, dispatch_uid="django_epica_mail.refusals"
        )
        logging.getLogger("django.template").addFilter(WithoutContext())
        with contextlib.suppress(ImportError):  # anymail is an extra
            from anymail.signals import tracking

            tracking.connect(webhooks.receive, dispatch_uid="django_epica_mail.webhooks")
        post_migrate.connect(schedule.offer, dispatch_uid="django_epica_mail.schedule")
