"""Connections to the real transports: the only module that opens them.

A process keeps its idle connections open in a pool, and a task borrows one to send several mails.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.utils.module_loading import import_string

from django_epica_mail import _compat, conf, replies, retry, signals
from django_epica_mail.retry import Failure, Result, Stage
from django_epica_mail.transports import anymail, dkim, oauth
from django_epica_mail.transports.config import (
    DJANGO_SMTP,
    ENVELOPE_FROM,
    LOCMEM,
    OUR_OPTIONS,
    check_envelope_from,
    our_options,
    specs,
    under_test,
    uses_mailers,
)
from django_epica_mail.transports.smtp import RecordingBackend, client_of, recording_backend
from django_epica_mail.transports.token_providers import cut_off

logger = logging.getLogger(__name__)

_REMEMBERED_SECONDS = 3600.0

_sending = ContextVar[str | None]("django_epica_mail_sending", default=None)
"""The id of the e-mail that this thread is giving to its transport."""


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


def is_being_sent(message: EmailMessage) -> bool:
    """Return whether this thread is giving an e-mail of the queue, or a copy, to its transport."""
    own = getattr(message, anymail.ID, None)
    return own is not None and own == _sending.get()


@contextlib.contextmanager
def _handing_over(email_id: str | None) -> Iterator[None]:
    token = _sending.set(email_id)
    try:
        with signals.concerning(email_id):
            yield
    finally:
        _sending.reset(token)


class Connection:
    """One backend, kept open for several mails and used by one task at a time."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.mails = 0
        self.accepted = 0
        self.used_at = time.monotonic()
        self._backend: BaseEmailBackend | None = None

    def send(self, message: EmailMessage) -> Result:
        """Send a message through the transport and return the result. Never raises.

        Recipients beyond a limit of the transaction are asked in further ones, at once. Each of
        them settles at least its first recipient.
        """
        started = time.monotonic()
        deadline, carried = started + conf.get().send_timeout, self.accepted
        try:
            with _handing_over(getattr(message, anymail.ID, None)):
                result = self._send_to(message, deadline, carried)
                while result.failure is None and time.monotonic() < deadline:
                    rest = sorted(it for it in result.limited if it < len(message.recipients()))
                    if not rest:
                        break
                    later = self._send_to(_addressed_to(message, rest), deadline, carried)
                    result = retry.join(result, rest, later)
        except Exception as error:  # noqa: BLE001 - the mail may be accepted, but nobody can say
            self.close()
            failure = Failure(kind=retry.Kind.UNKNOWN, reply=_words(error))
            return Result(failure=failure, seconds=time.monotonic() - started)
        most = _session_limits.most(self.alias)
        if self.mails >= conf.get().connection_max_mails or self.accepted >= most:
            self.close()
        return result

    def _send_to(self, message: EmailMessage, deadline: float, carried: int) -> Result:
        """Send a message in one transaction and return the result.

        ``carried`` is how many other mails this connection has had accepted.

        A server may have closed the connection since its last mail, or take only so many on one.
        Both show before it accepts the content, so a second attempt, on a new connection and in
        the time left, is safe.
        """
        reused = self._backend is not None
        is_smtp = isinstance(self._backend, DjangoSMTPBackend)
        result = self._attempt(message, deadline)
        failure = result.failure
        if failure is None or not reused or time.monotonic() >= deadline:
            return result
        may_be_limit = bool(is_smtp and carried) and failure.may_be_session_limit
        if may_be_limit and _session_limits.may_ask_again(self.alias, failure):
            result = self._attempt(message, deadline)
            _session_limits.learn(self.alias, carried, failure, result.failure)
        elif _is_disconnect(failure):
            result = self._attempt(message, deadline)
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
        backend, self._backend = self._backend, None
        self.mails = self.accepted = 0
        if backend is not None:
            with contextlib.suppress(Exception):  # the backend is discarded in any case
                backend.close()

    def _attempt(self, message: EmailMessage, deadline: float) -> Result:
        started = time.monotonic()
        failure, sent = None, None
        stage = Stage.CONNECT
        try:
            backend = self.open(deadline)
            if anymail.is_provider(backend):
                anymail.prepare(backend, message)
            client = client_of(backend)
            if client is not None:
                client.envelope_from = getattr(message, ENVELOPE_FROM, "")
            stage = Stage.UNSEEN
            with cut_off(getattr(backend, "session", None), deadline - time.monotonic()):
                sent = backend.send_messages([message])
        except Exception as error:  # noqa: BLE001 - any error concerns this mail alone
            failure = _classify(error, _stage_reached(self._backend, stage))
        self.mails += 1
        self.used_at = time.monotonic()
        seconds = self.used_at - started
        if self._backend is not None and anymail.is_provider(self._backend):
            result = anymail.result(message, failure, seconds)
        else:
            result = _backend_result(self._backend, failure, sent, seconds)
        if failure is not None:
            self.close()
        elif result.failure is None:
            self.accepted += 1
        return result


def build(alias: str) -> BaseEmailBackend:
    """Return a new, unconnected backend for a transport.

    Raises ``ImproperlyConfigured`` for wrong options ``oauth``, ``dkim`` and ``envelope_from``,
    ``MissingExtra`` if they need a package that is not installed, and what the backend raises.
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
    """Give a backend what its options ``oauth`` and ``dkim`` stand for; check ``envelope_from``."""
    if "envelope_from" in options:
        check_envelope_from(options["envelope_from"])
    if "oauth" in options:
        mailbox = oauth.Mailbox(backend.username or "", backend.host, backend.port)
        backend.tokens = oauth.source(alias, options["oauth"], mailbox)
        oauth.require_encryption(mailbox.host, encrypted=backend.use_tls or backend.use_ssl)
    if "dkim" in options:
        backend.signer = dkim.Signer(dkim.load(options["dkim"]))


def _classify(error: Exception, stage: Stage) -> Failure:
    """Return what an error means: the site's own function decides first, then this package."""
    path = conf.get().classify
    try:
        known: Failure | None = import_string(path)(error, stage) if path else None
        if known is not None:
            return replace(known, reply=replies.reply_text(known.reply))
    except Exception as own:  # noqa: BLE001 - without its traceback, which may show addresses
        name = type(own).__name__
        logger.error("%s (EPICA_MAIL['CLASSIFY']) raised %s; the package decides.", path, name)
    return anymail.classify(error) or replies.classify(error, stage)


def _is_disconnect(failure: Failure) -> bool:
    return failure.code in (None, 421) and failure.kind in (
        retry.Kind.TRANSIENT,
        retry.Kind.THROTTLED,
        retry.Kind.OUTAGE,
    )


def _words(error: Exception) -> str:
    return replies.reply_text(f"{type(error).__name__}: {error}")


def _stage_reached(backend: BaseEmailBackend | None, stage: Stage) -> Stage:
    client = client_of(backend)
    return stage if client is None else client.stage


def _backend_result(
    backend: BaseEmailBackend | None, failure: Failure | None, sent: object, seconds: float
) -> Result:
    """Return the result of an attempt.

    The server's replies are known only where the dialogue is recorded. Elsewhere a backend that
    raises nothing has sent the mail, unless ``sent``, what it returned, is zero.
    """
    nothing = Failure(kind=retry.Kind.MESSAGE, reply="The backend found nothing to send.")
    client = client_of(backend)
    if client is None:
        if failure is None and sent is not None and not sent:
            failure = nothing
        return Result(failure=failure, code=failure.code if failure else None, seconds=seconds)
    refused, limited = replies.classify_recipients(client.recipient_replies)
    code, words = client.content_reply or (None, b"")
    if code is not None and replies.is_positive(code):
        failure = None  # the server has the mail, whatever a site's own backend did afterwards
    elif failure is None:
        failure = nothing
    return Result(
        failure=failure,
        refused=refused,
        code=failure.code if failure is not None else code,
        reply=replies.reply_text(words),
        seconds=seconds,
        limited=limited,
    )


def _addressed_to(message: EmailMessage, positions: Sequence[int]) -> EmailMessage:
    """Return the same message for the recipients at these positions only."""
    everyone = message.recipients()
    addresses = [everyone[position] for position in positions]
    narrowed = copy.copy(message)
    narrowed.recipients = lambda: addresses  # type: ignore[method-assign]
    return narrowed


class _SessionLimits:
    """What this process has learnt of how many mails a server takes on one connection.

    Forgotten after ``_REMEMBERED_SECONDS``, for servers and their limits change.
    """

    def __init__(self) -> None:
        self._most: dict[str, tuple[int, float]] = {}
        self._asked_in_vain: dict[tuple[str, bool], float] = {}

    def most(self, alias: str) -> float:
        """Return how many mails a connection of a transport carries at most."""
        most, until = self._most.get(alias, (math.inf, math.inf))
        return most if time.monotonic() < until else math.inf

    def may_ask_again(self, alias: str, failure: Failure) -> bool:
        """Return whether a refused mail is offered once more: a verdict says nothing of a limit."""
        return time.monotonic() >= self._asked_in_vain.get((alias, failure.names_a_limit), 0.0)

    def learn(self, alias: str, carried: int, first: Failure, again: Failure | None) -> None:
        """Take account of a mail refused after ``carried`` others, and asked for once more."""
        until = time.monotonic() + _REMEMBERED_SECONDS
        if again is None:
            self._most[alias] = carried, until
        elif again.code == first.code:
            self._asked_in_vain[alias, first.names_a_limit] = until


_session_limits = _SessionLimits()


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
