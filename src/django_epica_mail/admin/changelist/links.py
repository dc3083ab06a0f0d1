"""Addresses of pages, and of the list of e-mails narrowed by its filters."""

from __future__ import annotations

from datetime import MAXYEAR, MINYEAR, datetime, timezone
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.urls import reverse

from django_epica_mail.lifecycle import Status

OPEN = ".."
"""An end of a time interval that is not bounded (ISO 8601-2)."""
NO_CODE = "0"
"""What the filter for the reply code calls a failure without one."""


def page_url(site: AdminSite, name: str, *args: object) -> str:
    """Return the URL of a page of ours in an admin site: a project may have several."""
    return reverse(f"admin:epica_mail_{name}", args=args, current_app=site.name)


def emails_url(site: AdminSite, **filters: Any) -> str:
    """Return the URL of the list of e-mails, narrowed by filters as ``query`` takes them."""
    narrowed = query(**filters)
    return page_url(site, "emaillog_changelist") + (f"?{narrowed}" if narrowed else "")


def query(**filters: Any) -> str:
    """Return the query string of filters, as in ``query(status="failed", queue="")``.

    Filters without a value are left out. The names are the ``parameter_name`` of the filters, and
    ``q`` for the search.
    """
    return urlencode({name: value for name, value in filters.items() if value not in ("", None)})


def failures(
    kind: str,
    code: int | None,
    *,
    since: datetime | str,
    until: datetime | None = None,
    **more: Any,
) -> str:
    """Return the query string of the e-mails that failed for one reason.

    ``kind`` is a ``retry.Kind``, ``code`` the server's reply code, 0 or ``None`` if it gave none.
    They ended between ``since``, a moment or a name that the filter "ended" offers such as
    ``"hour"``, and ``until``, a moment or ``None`` for no bound. ``more`` are other filters.
    """
    ended = since if isinstance(since, str) else interval(since, until)
    return query(
        status=Status.FAILED.value,
        failure_kind=kind,
        code=code or NO_CODE,
        ended=ended,
        **more,
    )


def interval(since: datetime | None, until: datetime | None = None) -> str:
    """Return a time interval as ISO 8601 writes it: ``2026-01-01T10:00:00Z/..``."""
    return f"{_moment(since)}/{_moment(until)}"


def bounds(text: str) -> tuple[datetime | None, datetime | None] | None:
    """Return the bounds of an interval, ``None`` for an open one; ``None`` if it is not one."""
    parts = text.split("/")
    if len(parts) != 2 or parts == [OPEN, OPEN]:
        return None
    try:
        since, until = (None if it == OPEN else _parsed(it) for it in parts)
    except (ValueError, OverflowError):
        return None
    return since, until


def _moment(moment: datetime | None) -> str:
    if moment is None:
        return OPEN
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _parsed(text: str) -> datetime:
    """Return a moment with its time zone; raise ``ValueError`` if it is not one."""
    moment = datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
    if moment.tzinfo is None:
        raise ValueError("A moment needs a time zone.")
    if not MINYEAR < moment.year < MAXYEAR:
        raise ValueError("No page can show the edges of the calendar in every time zone.")
    return moment.astimezone(timezone.utc)
