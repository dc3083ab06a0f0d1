"""Helpers for a site's own tests: queue mail, inspect it, deliver it, make deliveries fail.

They work with Django's test cases and with pytest, for which the package's plugin has the fixture
``epica_outbox``. No server, broker or worker is needed.
"""

from django_epica_mail.testing.assertions import assert_email_queued, assert_no_email_queued
from django_epica_mail.testing.delivery import drain_email_queue, fail_delivery
from django_epica_mail.testing.environment import (
    RealTransportOpened,
    no_real_transports,
    queued_mail,
    travel,
    travel_to,
)

__all__ = [
    "RealTransportOpened",
    "assert_email_queued",
    "assert_no_email_queued",
    "drain_email_queue",
    "fail_delivery",
    "no_real_transports",
    "queued_mail",
    "travel",
    "travel_to",
]
