"""What the worker adds to a message, where the site asks for it: headers, and tracking."""

from __future__ import annotations

from email.policy import Policy
from typing import Final

from django.core.mail import EmailMessage

from django_epica_mail import links
from django_epica_mail.models import EmailLog

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
    """Change a message as its row asks for. Only mails with exactly one recipient do."""
    words = mail.additions.split()
    if UNSUBSCRIBE in words:
        _offer_unsubscribe(message, mail)


def _offer_unsubscribe(message: EmailMessage, mail: EmailLog) -> None:
    """Add the headers of RFC 2369 and RFC 8058, unless the caller has said how to unsubscribe."""
    if LIST_UNSUBSCRIBE.lower() in {name.lower() for name in message.extra_headers}:
        return
    (address,) = message.recipients()
    url = links.unsubscribe_url(address, mail.category, email_id=mail.pk)
    message.extra_headers[LIST_UNSUBSCRIBE] = _OneLine(f"<{url}>")
    message.extra_headers[LIST_UNSUBSCRIBE_POST] = "List-Unsubscribe=One-Click"
