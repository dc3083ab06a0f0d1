"""Times for people: one 24-hour format in every language, with the zone named once a page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

CLOCK = "H:i"
DAY = "j M Y"
MOMENT = "j M Y H:i"
"""Formats of Django's ``date`` filter; the names of months are in the reader's language."""


def clock(at: datetime) -> str:
    """Return a time as ``20:15``, with the day if it is not today's, and the year if not this."""
    local, today = timezone.localtime(at), timezone.localdate()
    if local.year != today.year:
        return date_format(local, MOMENT)
    return date_format(local, CLOCK if local.date() == today else f"j M {CLOCK}")


def moment(at: datetime) -> str:
    """Return a time with its day and year, as in ``30 Nov 2026 20:15``."""
    return date_format(timezone.localtime(at), MOMENT)


def element(at: datetime, text: str = "") -> SafeString:
    """Return a time as HTML: ``text``, or its day, year and time to the second."""
    local = timezone.localtime(at)
    shown = text or date_format(local, f"{MOMENT}:s")
    return format_html('<time datetime="{}">{}</time>', local.isoformat(), shown)


def column(name: str, label: StrOrPromise) -> Callable[[Any], str]:
    """Return a column of a list, or a field of a page to read, that shows the time in a field."""

    @admin.display(description=label)
    def shown(row: Any) -> str:
        at = getattr(row, name)
        return "-" if at is None else moment(at)

    shown.__name__ = name  # the admin makes it the name of a CSS class
    return shown


def zone() -> str:
    """Return the sentence that names the time zone of a page, with its distance from UTC."""
    offset = f"{timezone.localtime():%z}"
    name = timezone.get_current_timezone_name()
    about = {"zone": name, "offset": f"UTC{offset[:3]}:{offset[3:]}"}
    return _("Times are those of %(zone)s (%(offset)s).") % about
