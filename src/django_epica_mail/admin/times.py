"""Times for people: one 24-hour format in every language, with the zone named once a page."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

CLOCK = "H:i"
DAY = "j M Y"
MOMENT = "j M Y H:i"
"""Formats of Django's ``date`` filter; the names of months are in the reader's language."""


def clock(at: datetime) -> str:
    """Return a time as ``20:15``, on another day than today as ``30 Nov 20:15``."""
    local = timezone.localtime(at)
    is_today = local.date() == timezone.localdate()
    return date_format(local, CLOCK if is_today else f"j M {CLOCK}")


def moment(at: datetime) -> str:
    """Return a time with its day and year, as in ``30 Nov 2026 20:15``."""
    return date_format(timezone.localtime(at), MOMENT)


def zone() -> str:
    """Return the sentence that names the time zone of a page, with its distance from UTC."""
    offset = f"{timezone.localtime():%z}"
    name = timezone.get_current_timezone_name()
    about = {"zone": name, "offset": f"UTC{offset[:3]}:{offset[3:]}"}
    return _("Times are those of %(zone)s (%(offset)s).") % about
