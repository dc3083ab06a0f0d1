"""What the worker adds to a message, where the site asks for it: headers, and tracking."""

from __future__ import annotations

import logging
from email.policy import Policy
from functools import partial
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage

from django_epica_mail import links, tracking
from django_epica_mail import transport as transports
from django_epica_mail.models import EmailLog

logger = logging.getLogger(__name__)

UNSUBSCRIBE: Final = "unsubscribe"
OPENS: Final = "opens"
CLICKS: Final = "clicks"

LIST_UNSUBSCRIBE, LIST_UNSUBSCRIBE_POST = "List-Unsubscribe", "List-Unsubscribe-Post"


class _OneLine(str):
    """The value of a header that stays on one line: a link that is folded is none.

    Python's own headers write a long word as an encoded one, which no mail reader looks into.
    """

    name = LIST_UNSUBSCRIBE
    max_count = None

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


def apply(message: EmailMessage, mail: EmailLog) -> None:
    """Change a message as its row asks for. Only mails with exactly one recipient do.

    A mail is sent without them where no link to the site can be made any more.
    """
    words = mail.additions.split()
    try:
        if UNSUBSCRIBE in words:
            _offer_unsubscribe(message, mail)
        if OPENS in words or CLICKS in words:
            _track(message, mail, opens=OPENS in words, clicks=CLICKS in words)
    except ImproperlyConfigured as error:
        logger.error("E-mail %s is sent without the links it was to carry. %s", mail.pk, error)


def _track(message: EmailMessage, mail: EmailLog, *, opens: bool, clicks: bool) -> None:
    """Let the provider count opens and clicks where it can, and count them ourselves elsewhere."""
    if transports.tracks(mail.transport):
        vars(message).update(track_opens=opens, track_clicks=clicks)
        return
    tracking.apply(
        message,
        track=partial(links.click_url, mail.pk) if clicks else None,
        image=links.open_url(mail.pk) if opens else None,
        but=str(_header(message, LIST_UNSUBSCRIBE) or ""),
    )
    for name in ("track_opens", "track_clicks"):  # which the provider would refuse
        vars(message).pop(name, None)


def _offer_unsubscribe(message: EmailMessage, mail: EmailLog) -> None:
    """Add the headers of RFC 2369 and RFC 8058, unless the caller has said how to unsubscribe."""
    if _header(message, LIST_UNSUBSCRIBE) is not None:
        return
    (address,) = message.recipients()
    url = links.unsubscribe_url(address, mail.category, email_id=mail.pk)
    message.extra_headers[LIST_UNSUBSCRIBE] = _OneLine(f"<{url}>")
    message.extra_headers[LIST_UNSUBSCRIBE_POST] = "List-Unsubscribe=One-Click"


def _header(message: EmailMessage, name: str) -> Any:
    """Return a header that the caller has set, however the name is written."""
    headers = {known.lower(): value for known, value in message.extra_headers.items()}
    return headers.get(name.lower())
