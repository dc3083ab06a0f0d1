"""Helpers for a site's own tests: queue mail, inspect it, deliver it, make deliveries fail.

Others read what a mail says: whether its templates render, whether it still says what a snapshot
says, and what a lint finds.

They work with Django's test cases and with pytest, for which the package's plugin has the fixture
``epica_outbox``. No server, broker or worker is needed.
"""

from django_epica_mail.testing.assertions import assert_email_queued, assert_no_email_queued
from django_epica_mail.testing.content import assert_mail_renders
from django_epica_mail.testing.delivery import drain_email_queue, fail_delivery
from django_epica_mail.testing.environment import (
    RealTransportOpened,
    no_real_transports,
    queued_mail,
    travel,
    travel_to,
)
from django_epica_mail.testing.lint import Finding, assert_mail_is_clean, lint_mail
from django_epica_mail.testing.snapshots import assert_mail_snapshot

__all__ = [
    "Finding",
    "RealTransportOpened",
    "assert_email_queued",
    "assert_mail_is_clean",
    "assert_mail_renders",
    "assert_mail_snapshot",
    "assert_no_email_queued",
    "drain_email_queue",
    "fail_delivery",
    "lint_mail",
    "no_real_transports",
    "queued_mail",
    "travel",
    "travel_to",
]
