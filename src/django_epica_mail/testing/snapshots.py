"""Snapshots: files in a site's repository that hold what a mail says."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from email.message import Message
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.mail import EmailMessage

from django_epica_mail.queueing.rendering.render import Rendered

UPDATE_VARIABLE = "EPICA_MAIL_UPDATE_SNAPSHOTS"
UPDATE_OPTION = "--epica-mail-update-snapshots"
_HOW = f"run pytest with {UPDATE_OPTION}, or the tests with {UPDATE_VARIABLE}=1"
_MOST_LINES = 100
"""Lines of a difference that are shown."""

_HEADERS = ("Subject", "From", "To", "Cc", "Bcc", "Reply-To")
_NOT_KEPT = frozenset({"date", "message-id", *map(str.lower, _HEADERS)})
"""Headers of a message's own that differ each time, or that stand there already."""

_MASKS = {
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b": "<uuid>",
    # Of a reset of a password, and of Django's signers: "value:time:signature" or with a dot.
    r"\b[0-9a-z]{6,7}-[0-9a-f]{32}\b": "<token>",
    r"(?<![\w=-])[\w=-]{1,2000}(?::[\w-]{4,10})?[:.][\w-]{43}(?![\w-])": "<signed>",
}
"""What differs in each run although a site's code is the same, and what stands for it."""


def assert_mail_snapshot(
    mail: EmailMessage | Rendered, path: str | Path, *, mask: Mapping[str, str] | None = None
) -> None:
    """Assert that a mail says what a file says, which was written from it before.

    ``mail`` is a message, for instance of ``mail.outbox``, or what ``assert_mail_renders`` returns.
    ``path`` is the file, in UTF-8. It holds the headers that a reader sees, the headers that the
    site's code sets, the text, the HTML, and the names and types of attachments. It holds no date,
    Message-ID or boundary. UUIDs, tokens of password resets and signed values are replaced by
    ``<uuid>``, ``<token>`` and ``<signed>``. ``mask`` maps further regular expressions to their
    replacements.

    With the environment variable ``EPICA_MAIL_UPDATE_SNAPSHOTS`` set to 1, or pytest's option
    ``--epica-mail-update-snapshots``, writes the file instead.

    Raises ``AssertionError`` with the difference, or if there is no such file.
    """
    path, text = Path(path), _masked("\n".join(_lines(mail)), mask or {})
    if os.environ.get(UPDATE_VARIABLE, "0") not in ("", "0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    try:
        known = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AssertionError(f"There is no snapshot {path}. To write it, {_HOW}.") from None
    if known != text:
        difference = difflib.unified_diff(
            known.splitlines(), text.splitlines(), str(path), "the mail now", lineterm=""
        )
        shown = list(islice(difference, _MOST_LINES + 1))
        if len(shown) > _MOST_LINES:
            shown[_MOST_LINES:] = ["..."]
        raise AssertionError(
            "\n".join((f"The mail differs from its snapshot. To accept it, {_HOW}.", *shown))
        )


def _masked(text: str, more: Mapping[str, str]) -> str:
    for pattern, name in {**more, **_MASKS}.items():
        text = re.sub(pattern, name, text)
    return text


def _lines(mail: EmailMessage | Rendered) -> Iterator[str]:
    """Yield the lines of a snapshot; the last is empty."""
    parts: list[tuple[str, Any]]
    if isinstance(mail, Rendered):
        yield f"Subject: {mail.subject or ''}"
        parts = [("text/plain", mail.text), ("text/html", mail.html)]
    else:
        yield from _headers(mail)
        alternatives = [(it[1], it[0]) for it in getattr(mail, "alternatives", None) or ()]
        parts = [(f"text/{mail.content_subtype}", mail.body), *alternatives]
    for kind, content in parts:
        if content:
            yield from ("", f"--- {kind}")
            yield from (line.rstrip() for line in str(content).rstrip().splitlines())
    yield ""


def _headers(message: EmailMessage) -> Iterator[str]:
    addresses = (message.to, message.cc, message.bcc, message.reply_to)
    values = (message.subject, message.from_email, *(", ".join(map(str, it)) for it in addresses))
    own = {name: it for name, it in message.extra_headers.items() if name.lower() not in _NOT_KEPT}
    for name, value in (*zip(_HEADERS, values, strict=True), *sorted(own.items())):
        if value:
            yield f"{name}: {value}"
    for attachment in message.attachments:
        yield f"Attachment: {_described(attachment)}"


def _described(attachment: Any) -> str:
    if isinstance(attachment, Message):
        return f"{attachment.get_filename()} ({attachment.get_content_type()})"
    filename, _, mimetype = attachment
    return f"{filename} ({mimetype})"
