"""Reads the mailbox that bounces come back to: by IMAP, or a Maildir of this machine."""

from __future__ import annotations

import contextlib
import imaplib
import logging
import os
import ssl
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import Timer
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.db import Error

from django_epica_mail import conf
from django_epica_mail.exceptions import MailboxError, TokenRefused, is_passing
from django_epica_mail.replies import reply_text
from django_epica_mail.tracking.bounces import incoming
from django_epica_mail.tracking.bounces.incoming import Received
from django_epica_mail.tracking.bounces.reports import MAX_BYTES
from django_epica_mail.transports import oauth
from django_epica_mail.transports.token_providers import is_loopback

logger = logging.getLogger(__name__)

MOST_MESSAGES = 1000
"""Messages that one run reads."""
RUN_SECONDS = 120.0
"""Seconds after which a run begins no more messages; the next run goes on."""
_IO_SECONDS = 30.0
"""Seconds that a server may take for one answer."""
_MOST_SECONDS = RUN_SECONDS + 2 * _IO_SECONDS
"""Seconds after which a connection is cut off."""
_WINDOW = 5000
"""Messages of a mailbox searched at a time, so that no answer is longer than imaplib reads."""
_PORTS = {"imaps": 993, "imap": 143}
_EXAMPLES = (
    "'imaps://bounces%40example.com@imap.example.com/INBOX' with its PASSWORD or OAUTH, or "
    "'maildir:/var/mail/bounces'"
)
_IMAP_SCOPE = "https://outlook.office.com/IMAP.AccessAsUser.All"
_SEEN, _DELETED = r"(\Seen)", r"(\Seen \Deleted)"


class Mailbox(Protocol):
    """A mailbox, open for one run."""

    def unread(self, until: float) -> Iterator[tuple[str, bytes]]:
        """Yield the key of each unread message, and its first ``MAX_BYTES`` bytes.

        After the monotonic second ``until`` it looks for no more.
        """

    def mark(self, key: str, *, delete: bool) -> None:
        """Mark a message as read, or delete it."""


def read(*, most: int = MOST_MESSAGES, seconds: float = RUN_SECONDS) -> dict[str, int]:
    """Record what has come back to ``BOUNCE_MAILBOX``; return how many messages became what.

    Keys are the values of ``incoming.Received``. A message is marked only after it was recorded, so
    one that a crash leaves is read again. What is not understood stays, marked as read; with
    ``DELETE_BOUNCES``, what was recorded is deleted. Raises ``ImproperlyConfigured``,
    ``MissingExtra``, ``MailboxError`` and ``DatabaseError``.
    """
    ends_at = time.monotonic() + seconds
    counts: Counter[str] = Counter({it.value: 0 for it in Received})
    with opened() as mailbox:
        for number, (key, content) in enumerate(mailbox.unread(ends_at), 1):
            received = receive(content)
            counts[received.value] += 1
            is_done = received in (Received.RECORDED, Received.KNOWN)
            mailbox.mark(key, delete=is_done and conf.get().delete_bounces)
            if number >= most or time.monotonic() >= ends_at:
                break
    return dict(counts)


def receive(content: bytes, *, envelope_to: str = "") -> Received:
    """Record a message as ``incoming.receive`` does, whatever it is.

    One that the package cannot deal with must not stop those after it. Raises the database's error
    if it cannot be stored now.
    """
    try:
        return incoming.receive(content, envelope_to=envelope_to)
    except Exception as error:  # foreign input; without a traceback, which shows it
        if isinstance(error, Error) and is_passing(error):
            raise
        logger.error("A message that came back cannot be read (%s).", type(error).__name__)
        return Received.UNRECOGNISED


def opened() -> AbstractContextManager[Mailbox]:
    """Open ``BOUNCE_MAILBOX``. Raises as ``read`` does."""
    place = parse(conf.get().bounce_mailbox)
    return _maildir(place) if isinstance(place, Path) else _imap(place)


@dataclass(frozen=True, slots=True)
class ImapPlace:
    """Where a mailbox is, and how to log in."""

    host: str
    port: int
    user: str
    folder: str
    uses_tls: bool
    """Whether TLS begins with the connection; otherwise STARTTLS follows."""
    password: str = field(default="", repr=False)
    tokens: oauth.TokenSource | None = None


def parse(value: Any) -> Path | ImapPlace:
    """Return where a value of ``BOUNCE_MAILBOX`` says that the mailbox is.

    Raises ``ImproperlyConfigured``, which never shows the value, and ``MissingExtra``.
    """
    parts = {"URI": value} if isinstance(value, str) else dict(value or {})
    try:
        uri = urlsplit(parts.get("URI", ""))
        port = uri.port
    except ValueError:
        uri, port = urlsplit(""), None
    if uri.scheme == "maildir" and uri.path.startswith("/") and not uri.netloc:
        return Path(unquote(uri.path))
    if uri.scheme not in _PORTS or not uri.hostname or not uri.username:
        raise ImproperlyConfigured(
            f"EPICA_MAIL['BOUNCE_MAILBOX'] names no mailbox: give {_EXAMPLES}."
        )
    return _imap_place(uri, port or _PORTS[uri.scheme], parts)


def _imap_place(uri: SplitResult, port: int, parts: dict[str, Any]) -> ImapPlace:
    host, user = uri.hostname or "", unquote(uri.username or "")
    password = parts.get("PASSWORD") or unquote(uri.password or "")
    if bool(password) == ("OAUTH" in parts):
        raise ImproperlyConfigured(
            "EPICA_MAIL['BOUNCE_MAILBOX'] needs either a PASSWORD or OAUTH beside its URI."
        )
    tokens = None
    if "OAUTH" in parts:
        form = dict(parts["OAUTH"])
        if form.get("provider") == "microsoft" and "refresh_token" in form:
            form.setdefault("scope", _IMAP_SCOPE)  # the default is for SMTP
        tokens = oauth.source("(bounces)", form, oauth.Mailbox(user, host, port))
    return ImapPlace(
        host=host,
        port=port,
        user=user,
        folder=unquote(uri.path.strip("/")) or "INBOX",
        uses_tls=uri.scheme == "imaps",
        password=password,
        tokens=tokens,
    )


# -- Maildir (cr.yp.to/proto/maildir.html)


class _Maildir:
    def __init__(self, path: Path) -> None:
        self._path = path

    def unread(self, until: float) -> Iterator[tuple[str, bytes]]:
        for name in sorted(os.listdir(self._path / "new")):
            content = _content_of(self._path / "new" / name)
            if content is not None:
                yield name, content

    def mark(self, key: str, *, delete: bool) -> None:
        file = self._path / "new" / key
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            if delete:
                file.unlink()
            else:
                bare = key.partition(":")[0]
                file.rename(self._path / "cur" / f"{bare}:2,S")


def _content_of(path: Path) -> bytes | None:
    """Return the beginning of a file, ``None`` if it is no plain one: others may write here too."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            return None
        with open(number, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(number)


@contextlib.contextmanager
def _maildir(path: Path) -> Iterator[Mailbox]:
    if not all((path / name).is_dir() for name in ("new", "cur")):
        raise MailboxError(
            f"{path} is no Maildir: it has no folders 'new' and 'cur' that this process can see."
        )
    try:
        yield _Maildir(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise MailboxError(
            f"The Maildir {path} cannot be read and changed ({reason}): give the user of this "
            "process the right to."
        ) from None


# -- IMAP (RFC 3501, RFC 4315)


class _Imap:
    def __init__(self, client: imaplib.IMAP4, messages: int) -> None:
        self._client = client
        self._messages = messages
        self._deleted: list[str] = []

    def unread(self, until: float) -> Iterator[tuple[str, bytes]]:
        refused = None
        # By sequence number, which no message changes while this session does not expunge.
        for start in range(1, self._messages + 1, _WINDOW):
            if start > 1 and time.monotonic() >= until:
                break
            window = f"{start}:{min(start + _WINDOW - 1, self._messages)}"
            found = _answer(self._client.uid("SEARCH", window, "UNSEEN", "UNDELETED"))
            for uid in (found[0] or b"").split():
                key = uid.decode("ascii", "replace")
                given = self._client.uid("FETCH", key, f"(BODY.PEEK[]<0.{MAX_BYTES}>)")
                if given[0] == "NO":  # Exchange does not convert everything: first read the others
                    refused = given
                    if time.monotonic() >= until:
                        break
                    continue
                for part in _answer(given):
                    if isinstance(part, tuple):
                        yield key, part[1][:MAX_BYTES]
                        break
        if refused is not None:
            _answer(refused)

    def mark(self, key: str, *, delete: bool) -> None:
        flags = _DELETED if delete else _SEEN
        _answer(self._client.uid("STORE", key, "+FLAGS.SILENT", flags))
        if delete:
            self._deleted.append(key)

    def expunge(self) -> None:
        """Remove what was deleted here, and nothing that others have marked as deleted.

        Without UIDPLUS (RFC 4315) it stays marked as deleted, until some client expunges.
        """
        if not self._deleted:
            return
        (words,) = _answer(self._client.capability())  # more is offered after the login
        if b"UIDPLUS" in words.upper().split():
            for start in range(0, len(self._deleted), 100):
                self._client.uid("EXPUNGE", ",".join(self._deleted[start : start + 100]))


@contextlib.contextmanager
def _imap(place: ImapPlace) -> Iterator[Mailbox]:
    try:
        with contextlib.ExitStack() as stack:
            client = _connect(place)
            stack.callback(_log_out, client)
            if not (place.uses_tls or is_loopback(place.host)):
                # Raises if the server has no STARTTLS: no password goes out in clear.
                client.starttls(ssl.create_default_context())
            _log_in(client, place)
            mailbox = _Imap(client, _select(client, place.folder))
            stack.callback(mailbox.expunge)
            yield mailbox
    except (imaplib.IMAP4.error, OSError, TokenRefused, UnicodeError) as error:
        raise MailboxError(_told(error, place)) from None  # causes may hold secrets


class _EndsInTime(imaplib.IMAP4):
    """A mixin for a client whose connection ends after ``_MOST_SECONDS``.

    Its time-out counts per read: a server that drips would hold a worker for ever.
    """

    def open(self, *args: Any, **options: Any) -> None:
        super().open(*args, **options)
        self._ends = Timer(_MOST_SECONDS, self._end)
        self._ends.daemon = True
        self._ends.start()

    def shutdown(self) -> None:
        self._ends.cancel()
        super().shutdown()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            socket.shutdown(self.sock, SHUT_RDWR)  # not that of TLS, which a read is using


class _Client(_EndsInTime):
    """A client without TLS, or with STARTTLS."""


class _TLSClient(_EndsInTime, imaplib.IMAP4_SSL):
    """A client whose connection begins with TLS."""


def _connect(place: ImapPlace) -> imaplib.IMAP4:
    if not place.uses_tls:
        return _Client(place.host, place.port, timeout=_IO_SECONDS)
    context = ssl.create_default_context()
    return _TLSClient(place.host, place.port, ssl_context=context, timeout=_IO_SECONDS)


def _log_in(client: imaplib.IMAP4, place: ImapPlace) -> None:
    if place.tokens is None:
        client.login(place.user, place.password)
        return
    offered = [it.removeprefix("AUTH=") for it in client.capabilities if it.startswith("AUTH=")]
    mechanism = place.tokens.mechanism(" ".join(offered))
    if mechanism is None:
        raise MailboxError(
            f"{place.host} does not offer {' or '.join(place.tokens.mechanisms)} for IMAP, which "
            "OAUTH needs."
        )
    token = place.tokens.current(_IO_SECONDS)
    try:
        _log_in_with(client, mechanism, place.tokens, token)
    except imaplib.IMAP4.abort:
        raise
    except imaplib.IMAP4.error:
        if token.is_new:
            raise
        renewed = place.tokens.renewed(token, _IO_SECONDS)
        _log_in_with(client, mechanism, place.tokens, renewed)


def _log_in_with(
    client: imaplib.IMAP4, mechanism: str, tokens: oauth.TokenSource, token: oauth.Token
) -> None:
    answers = iter([oauth.initial_response(mechanism, tokens.mailbox, token)])

    def respond(_challenge: bytes) -> bytes:
        return next(answers, oauth.answer_to_error(mechanism)).encode()

    client.authenticate(mechanism, respond)


def _select(client: imaplib.IMAP4, folder: str) -> int:
    """Select a folder, and return how many messages it has."""
    quoted = folder.replace("\\", "\\\\").replace('"', '\\"')
    found = _answer(client.select(f'"{quoted}"'))
    return int(found[0] or 0)


def _answer(reply: tuple[str, list[Any]]) -> list[Any]:
    status, data = reply
    if status != "OK":
        words = data[0] if data and isinstance(data[0], bytes) else b""
        raise imaplib.IMAP4.error(words.decode("utf-8", "replace"))
    return data


def _told(error: Exception, place: ImapPlace) -> str:
    """Return what an error says, on one line and without the password or a token."""
    said = error.args[0] if error.args else ""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if isinstance(error, OSError):
        words = f"{type(error).__name__}: {error.strerror or error}"
    if isinstance(error, UnicodeError):
        words = "its user, password or folder has letters that are not ASCII"
    if place.password:
        words = words.replace(place.password, "[hidden]")
    if place.tokens is not None:
        words = place.tokens.safe_text(words)
    return f"The mailbox for bounces at {place.host} cannot be read: {reply_text(words)}"


def _log_out(client: imaplib.IMAP4) -> None:
    with contextlib.suppress(imaplib.IMAP4.error, OSError):
        client.logout()
