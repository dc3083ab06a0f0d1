"""The content of an e-mail: read from its row, built as it was sent, and shown in a sandbox."""

from __future__ import annotations

import email.policy
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage as MIMEMessage
from email.parser import BytesParser
from email.utils import format_datetime
from typing import Any

from django.core.mail import EmailMessage
from django.http import HttpRequest, HttpResponse, QueryDict
from django.utils.html import escape
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import messages
from django_epica_mail.admin.sanitize import TooMuchHTML, sanitized
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.messages import RawMessage, encryption
from django_epica_mail.messages.raw import render
from django_epica_mail.models import EmailLog

_POLICY = (
    "sandbox",  # no scripts, forms, pop-ups or navigation of the surrounding page
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "img-src {images}",
    "font-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'self'",
)
_OWN_IMAGES, _ALL_IMAGES = "data:", "data: https: http:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadableContent:
    """The readable parts of an e-mail."""

    headers: list[tuple[str, str]] = field(repr=False)
    """As sent, decoded."""
    text: str = field(repr=False)
    html: str = field(repr=False)
    """Either is empty if the e-mail has none."""


@sensitive_variables()
def read_content(mail: EmailLog) -> ReadableContent:
    """Return the headers and bodies of an e-mail without loading its attachments.

    Raises ``UnreadableEnvelope`` and ``MissingKey`` as ``EmailLog.message`` does, and whatever
    building the message raises.
    """
    message = messages.load(
        mail.envelope, messages.AbsentAttachments(), encryption.envelope_of(mail.pk)
    )
    if isinstance(message, RawMessage):  # stored as bytes, in an attachment of the row
        wire = render(mail.message())
        mime = BytesParser(policy=email.policy.default).parsebytes(wire)
        headers = [(name, str(value)) for name, value in mime.items()]
        return ReadableContent(headers=headers, text=_part(mime, "plain"), html=_part(mime, "html"))
    html = [_decoded(it[0]) for it in _alternatives(message) if it[1] == "text/html"]
    body = _decoded(message.body)
    if message.content_subtype == "html":
        body, html = "", [body, *html]
    message.attachments, message.body = [], ""
    vars(message)["alternatives"] = []
    _complete(message, mail)
    headers = [(name, _decoded_header(value)) for name, value in message.message().items()]
    return ReadableContent(headers=headers, text=body, html=html[0] if html else "")


@sensitive_variables()
def as_sent(mail: EmailLog) -> bytes:
    """Return an e-mail as it goes over the wire, except for the boundaries between its parts.

    Its ``Date`` is when it finished or, before that, when it was queued. Raises as ``read_content``
    does.
    """
    message = mail.message()
    if not isinstance(message, RawMessage):
        _complete(message, mail)
    return render(message)


@sensitive_variables()
def sandboxed(html: str, *, images: bool, inline: Mapping[str, str] | None = None) -> HttpResponse:
    """Return an e-mail's HTML as a page that can do nothing; ``images`` allows remote images.

    ``inline`` are the data URLs of its own images by Content-ID. The policy applies wherever the
    page is opened, inside its frame or not. For HTML that would take too long to sanitise, the page
    says so; without the package that sanitises it, how to install that.
    """
    try:
        page = sanitized(html, inline or {})
    except (MissingExtra, TooMuchHTML) as error:
        page = f"<!doctype html>\n<p>{escape(error)}</p>"
    response = HttpResponse(page, content_type="text/html; charset=utf-8")
    policy = "; ".join(_POLICY).format(images=_ALL_IMAGES if images else _OWN_IMAGES)
    response["Content-Security-Policy"] = policy
    response["X-Frame-Options"] = "SAMEORIGIN"
    response["X-Content-Type-Options"] = "nosniff"
    response["Referrer-Policy"] = "no-referrer"
    response["X-DNS-Prefetch-Control"] = "off"
    response["Cache-Control"] = "no-store, private"
    return response


def frame(request: HttpRequest, source: str) -> dict[str, Any]:
    """Return the context of the preview frame: the display options chosen, and links to others.

    ``source`` is the URL of the sandboxed page. The options are in the query string.
    """
    chosen = {
        "width": "phone" if request.GET.get("width") == "phone" else "desktop",
        "theme": "dark" if request.GET.get("theme") == "dark" else "light",
        "images": "1" if request.GET.get("images") == "1" else "0",
    }
    mark = "&" if "?" in source else "?"
    return {
        **chosen,
        "source": f"{source}{mark}images={chosen['images']}",
        "links": {
            f"{name}_{value}": _link(request.GET, name, value)
            for name, values in (
                ("width", ("desktop", "phone")),
                ("theme", ("light", "dark")),
                ("images", ("0", "1")),
            )
            for value in values
        },
    }


def _complete(message: EmailMessage, mail: EmailLog) -> None:
    """Add the headers that a message gets when it is sent, and let Django build any message.

    A provider also takes numbers as headers, and fields that its template fills.
    """
    names = {name.lower() for name in message.extra_headers}
    own = {
        "Message-ID": mail.message_id,
        "Date": format_datetime(mail.finished_at or mail.created_at),
    }
    missing = {name: value for name, value in own.items() if name.lower() not in names}
    given = {name: str(value) for name, value in message.extra_headers.items()}
    message.extra_headers = {**missing, **given}
    for name in ("subject", "from_email", "body"):
        setattr(message, name, getattr(message, name) or "")


def _alternatives(message: EmailMessage) -> list[Any]:
    return list(getattr(message, "alternatives", None) or ())


def _part(mime: MIMEMessage, subtype: str) -> str:
    part = mime.get_body((subtype,))
    return "" if part is None else str(part.get_content())


def _decoded(content: Any) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else str(content or "")


def _decoded_header(value: Any) -> str:
    try:
        return str(make_header(decode_header(str(value))))
    except (HeaderParseError, LookupError, UnicodeError):  # bad Base64, or an unknown charset
        return str(value)


def _link(query: QueryDict, name: str, value: str) -> str:
    changed = query.copy()
    changed[name] = value
    return f"?{changed.urlencode()}#epica-preview"
