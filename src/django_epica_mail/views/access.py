"""Who may see how the queue stands: staff, and a monitoring system that shows the token."""

from __future__ import annotations

from django.db import DatabaseError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

from django_epica_mail import conf

_SCHEME = "bearer"


def may_monitor(request: HttpRequest) -> bool:
    """Tell whether a request comes from staff, or carries ``EPICA_MAIL["MONITORING_TOKEN"]``.

    The token is read from the header ``Authorization: Bearer ...`` alone (RFC 6750, section 2.1):
    addresses end up in logs.
    """
    token = conf.get().monitoring_token
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    if token and scheme.lower() == _SCHEME:
        return constant_time_compare(shown.strip(), token)
    user = getattr(request, "user", None)  # without Django's authentication there is none
    try:
        return bool(user and user.is_active and user.is_staff)
    except DatabaseError:
        return False  # a health check must say that the database is down
