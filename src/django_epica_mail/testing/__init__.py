"""For a site's own tests: put mail into the queue, look at it, deliver it, make it fail.

Works with Django's test cases as well as with pytest, for which ``epica_outbox`` is a fixture of
the plugin that comes with the package. No server, broker or worker is needed.
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
