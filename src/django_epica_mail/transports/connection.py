"""Connections to the real transports: the only module that opens them.

A process keeps its idle connections open in a pool, and a task borrows one to send several mails.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.utils.module_loading import import_string

from django_epica_mail import _compat, conf, retry
from django_epica_mail.retry import Failure, Result, Stage
from django_epica_mail.transports import anymail, dkim, oauth
from django_epica_mail.transports.config import (
    DJANGO_SMTP,
    LOCMEM,
    OUR_OPTIONS,
    our_options,
    specs,
    under_test,
    uses_mailers,
)
from django_epica_mail.transports.smtp import RecordingBackend, recording_backend


@contextlib.contextmanager
def connection(alias: str) -> Iterator[Connection]:
    """Lend one task a connection to a transport, and keep it open for the next task."""
    lent = _pool.take(alias)
    try:
        yield lent
    except BaseException:
        lent.close()
        raise
    _pool.put(lent)


def close_connections() -> None:
    """Close every connection of this process that no task is using."""
    _pool.close()


def probe(alias: str) -> Failure | None:
    """Connect and authenticate to a transport, then close it; return why that failed, if it did."""
    probed = Connection(alias)
    try:
        probed.open(time.monotonic() + conf.get().send_timeout)
    except Exception as error:  # noqa: BLE001 - any error is the answer
        return _classify(error, Stage.CONNECT)
    finally:
        probed.close()
    return None


class Connection:
    """One backend, kept open for several mails and used by one task at a time."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.mails = 0
        self.used_at = time.monotonic()
        self._backend: BaseEmailBackend | None = None

    def send(self, message: EmailMessage) -> Result:
        """Send a message through the transport and return the result. Never raises.

        A server may have closed the connection since its last mail. That shows before the content
        is sent, so a second attempt, on a new connection and in the time left, is safe.
        """
        reused = self._backend is not None
        deadline = time.monotonic() + conf.get().send_timeout
        result = self._attempt(message, deadline)
        if (
            reused
            and result.failure is not None
            and _is_disconnect(result.failure)
            and time.monotonic() < deadline
        ):
            result = self._attempt(message, deadline)
        if self.mails >= conf.get().connection_max_mails:
            self.close()
        return result

    def open(self, deadline: float) -> BaseEmailBackend:
        """Return the backend, connected and authenticated by ``deadline`` (monotonic seconds).

        Raises whatever the backend raises. Only SMTP backends keep the deadline exactly.
        """
        if self._backend is None:
            self._backend = build(self.alias)
            if not isinstance(self._backend, RecordingBackend):  # that one opens in begin()
                self._backend.open()
        if isinstance(self._backend, RecordingBackend):
            self._backend.begin(deadline)
        return self._backend

    def close(self) -> None:
        """Close the backend, whatever state it is in."""
        backend, self._backend, self.mails = self._backend, None, 0
        if backend is not None:
            with contextlib.suppress(Exception):  # the backend is discarded in any case
                backend.close()

    def _attempt(self, message: EmailMessage, deadline: float) -> Result:
        started = time.monotonic()
        failure = None
        try:
            stage = Stage.CONNECT
            backend = self.open(deadline)
            if anymail.is_provider(backend):
                anymail.prepare(backend, message)
            stage = Stage.UNSEEN
            backend.send_messages([message])
        except Exception as error:  # noqa: BLE001 - any error concerns this mail alone
            failure = _classify(error, _stage_reached(self._backend, stage))
        self.mails += 1
        self.used_at = time.monotonic()
        seconds = self.used_at - started
        if self._backend is not None and anymail.is_provider(self._backend):
            result = anymail.result(message, failure, seconds)
        else:
            result = _backend_result(self._backend, failure, seconds)
        if failure is not None:
            self.close()
        return result


def build(alias: str) -> BaseEmailBackend:
    """Return a new, unconnected backend for a transport.

    Raises ``ImproperlyConfigured`` for wrong options ``oauth`` and ``dkim``, ``MissingExtra`` if
    they need a package that is not installed, and what the backend raises.
    """
    spec: Mapping[str, Any] = {"BACKEND": LOCMEM}
    ours: dict[str, Any] = {}
    if not under_test():
        spec, ours = specs()[alias], our_options(alias)
    backend_class = import_string(spec.get("BACKEND", DJANGO_SMTP))
    options = {key: it for key, it in spec.get("OPTIONS", {}).items() if key not in OUR_OPTIONS}
    options.pop("fail_silently", None)  # a silent failure would look like success
    if "oauth" in ours:
        options["password"] = oauth.PASSWORD
    if issubclass(backend_class, DjangoSMTPBackend):
        backend_class = recording_backend(backend_class)
        if hasattr(mail, "mailers"):
            # Django 6.1 reads None as "use the site's EMAIL_* settings", without a warning.
            options["alias"] = None
    elif ours:
        raise ImproperlyConfigured(
            f"Only SMTP has the option {' or '.join(ours)}: {spec['BACKEND']} is not a subclass of "
            f"{DJANGO_SMTP}."
        )
    if uses_mailers():
        options["alias"] = alias
    backend: BaseEmailBackend = backend_class(**options)
    backend.fail_silently = False  # a class may have set it itself
    if anymail.is_provider(backend):
        anymail.restrain(backend)
    if isinstance(backend, RecordingBackend):
        _equip(backend, alias, ours)
    return backend


def _equip(backend: RecordingBackend, alias: str, options: Mapping[str, Any]) -> None:
    """Give a backend what its options ``oauth`` and ``dkim`` stand for."""
    if "oauth" in options:
        mailbox = oauth.Mailbox(backend.username or "", backend.host, backend.port)
        backend.tokens = oauth.source(alias, options["oauth"], mailbox)
        oauth.require_encryption(mailbox.host, encrypted=backend.use_tls or backend.use_ssl)
    if "dkim" in options:
        backend.signer = dkim.Signer(dkim.load(options["dkim"]))


def _classify(error: Exception, stage: Stage) -> Failure:
    """Return what an error means: the site's own function decides first, then this package."""
    path = conf.get().classify
    known: Failure | None = import_string(path)(error, stage) if path else None
    return known or anymail.classify(error) or retry.classify(error, stage)


def _is_disconnect(failure: Failure) -> bool:
    return failure.code in (None, 421) and failure.kind in (
        retry.Kind.TRANSIENT,
        retry.Kind.THROTTLED,
        retry.Kind.OUTAGE,
    )


def _stage_reached(backend: BaseEmailBackend | None, stage: Stage) -> Stage:
    if isinstance(backend, RecordingBackend) and backend.connection is not None:
        return backend.connection.stage
    return stage


def _backend_result(
    backend: BaseEmailBackend | None, failure: Failure | None, seconds: float
) -> Result:
    """Return the result of an attempt; only a ``RecordingBackend`` knows the server's replies."""
    if not isinstance(backend, RecordingBackend) or backend.connection is None:
        return Result(failure=failure, code=failure.code if failure else None, seconds=seconds)
    refused = {
        position: retry.classify_reply(*reply)
        for position, reply in enumerate(backend.connection.recipient_replies)
        if reply[0] not in (250, 251)
    }
    code, words = backend.connection.content_reply or (None, b"")
    if code == 250:
        failure = None  # the server has the mail, whatever a site's own backend did afterwards
    elif failure is None:
        failure = Failure(kind=retry.Kind.MESSAGE, reply="The backend found nothing to send.")
    return Result(
        failure=failure,
        refused=refused,
        code=failure.code if failure is not None else code,
        reply=retry.reply_text(words),
        seconds=seconds,
    )


class _Pool:
    """The connections of this process that no task is using."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    def take(self, alias: str) -> Connection:
        self._close_stale()
        with self._lock:
            for connection in reversed(self._idle):
                if connection.alias == alias:
                    self._idle.remove(connection)
                    return connection
        return Connection(alias)

    def put(self, connection: Connection) -> None:
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _close_stale(self) -> None:
        oldest = time.monotonic() - conf.get().connection_max_idle
        with self._lock:
            stale = [connection for connection in self._idle if connection.used_at < oldest]
            self._idle = [connection for connection in self._idle if connection not in stale]
        for connection in stale:
            connection.close()


_pool = _Pool()


def _forget_connections() -> None:
    """Drop the parent's connections in a forked child: processes cannot share a socket."""
    global _pool
    _pool = _Pool()


_compat.run_after_fork(_forget_connections)
atexit.register(lambda: _pool.close())
