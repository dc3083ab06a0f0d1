"""The environment of a test: where its mail goes, what time it is, what it must not open.

Each change is a context manager and a decorator of functions and test cases, like Django's
``override_settings``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.test import override_settings
from django.test.utils import TestContextDecorator
from django.utils import timezone

from django_epica_mail import clock
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import worker
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.queueing import bulk
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

_HARMLESS = tuple(f"django.core.mail.backends.{name}" for name in ("locmem", "dummy", "console"))
_BELL = SimpleNamespace(
    ring_on_commit=doorbell.ring_on_commit,
    ring_for_batch_on_commit=doorbell.ring_for_batch_on_commit,
)
"""The real bell, also for a context within one that delivers at once."""

_LOCMEM = {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}


class RealTransportOpened(AssertionError):  # noqa: N818 - named after what happened
    """An attempt of a test to open a transport that reaches the outside world."""


class _Environment(TestContextDecorator):
    """A change that can be undone; subclasses make it in ``_change``."""

    def __init__(self) -> None:
        super().__init__()
        self._stacks: list[ExitStack] = []

    def enable(self) -> Any:
        """Make the change."""
        with ExitStack() as stack:
            value = self._change(stack)
            self._stacks.append(stack.pop_all())
        return value

    def disable(self) -> None:
        """Undo the change."""
        self._stacks.pop().close()

    def _change(self, stack: ExitStack) -> Any:
        raise NotImplementedError


class queued_mail(_Environment):  # noqa: N801 - read as a function, as override_settings is
    """Queue mail as the site itself does, although the test runner replaced its mail settings.

    Django's test runner sends all mail straight to ``mail.outbox``. Inside this context, mail that
    the site sends through the queue is queued, and ``drain_email_queue`` delivers it to
    ``mail.outbox``. Neither the broker nor a result backend is contacted, and the site's ``RATES``
    do not apply. Raises ``ImproperlyConfigured`` if the site sends nothing through the queue.

    With ``deliver``, mail that is due is delivered within the call that queues it, before the end
    of any transaction: tests that expect it in ``mail.outbox`` at once pass as they are.
    """

    def __init__(self, *, deliver: bool = False) -> None:
        super().__init__()
        self._deliver = deliver

    def _change(self, stack: ExitStack) -> None:
        connection.close_connections()  # they may have another test's settings
        stack.callback(connection.close_connections)
        stack.enter_context(override_settings(**_site_settings()))
        # A ring that reached a broker could wake a worker outside this test.
        stack.enter_context(patch.object(doorbell, "_publish", return_value=True))
        stack.enter_context(patch.object(rate_limits, "_rates", return_value={}))
        stack.enter_context(patch.object(result_backend, "store", return_value=False))
        bell = _Deliveries() if self._deliver else _BELL
        for name in ("ring_on_commit", "ring_for_batch_on_commit"):
            stack.enter_context(patch.object(doorbell, name, getattr(bell, name)))


class _Deliveries:
    """A bell whose ring is the delivery itself."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], object]] = []
        self._is_busy = False

    def ring_on_commit(self, queue: str, *, using: str) -> None:
        """Deliver the due mail of a queue."""
        self._do(partial(worker.deliver, queue))

    def ring_for_batch_on_commit(
        self, batch_id: str, *, using: str, queue: str | None = None
    ) -> None:
        """Make the mails of a bulk call, and deliver them."""
        self._do(partial(bulk.expand, batch_id))

    def _do(self, work: Callable[[], object]) -> None:
        """Do the work, or leave it to the call in progress: a delivery may queue another mail."""
        self._waiting.append(work)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._waiting:
                self._waiting.pop(0)()
        finally:
            self._waiting.clear()
            self._is_busy = False


def _site_settings() -> dict[str, Any]:
    """Return the mail settings that the test runner replaced, but with harmless transports."""
    if transports.uses_mailers():
        mailers: Mapping[str, Mapping[str, Any]] = transports.before_tests(
            "mailers", settings.MAILERS
        )
        queues = {alias for alias, spec in mailers.items() if transports.is_queue(spec)}
        if queues:
            kept = {alias: mailers[alias] if alias in queues else _LOCMEM for alias in mailers}
            return {"MAILERS": kept}
        raise ImproperlyConfigured(
            f"No alias in MAILERS uses the queue; the aliases are: {', '.join(mailers)}. Set "
            f"{transports.QUEUE_BACKEND} in the settings that the tests run with."
        )
    backend = transports.before_tests("email_backend", settings.EMAIL_BACKEND)
    if transports.is_queue({"BACKEND": backend}):
        return {"EMAIL_BACKEND": backend}
    raise ImproperlyConfigured(
        f"The site's EMAIL_BACKEND is {backend!r}, which is not the queue. Set "
        f"{transports.QUEUE_BACKEND} in the settings that the tests run with."
    )


class travel(_Environment):  # noqa: N801
    """Shift the queue's clock by the units of a ``timedelta``, as in ``travel(minutes=6)``.

    It decides what is due, expired, leased or old. Python's clock, and so ``timezone.now()`` in the
    site's own code, is unchanged. Nested shifts add up.
    """

    def __init__(self, **units: float) -> None:
        super().__init__()
        self._shift = timedelta(**units)

    def _change(self, stack: ExitStack) -> None:
        stack.enter_context(patch.object(clock, "offset", clock.offset + self._shift))


class travel_to(_Environment):  # noqa: N801
    """Set the queue's clock to an aware datetime, from which it runs on."""

    def __init__(self, time: datetime) -> None:
        super().__init__()
        if timezone.is_naive(time):
            raise ValueError(f"Give an aware datetime (see django.utils.timezone), not {time!r}.")
        self._time = time

    def _change(self, stack: ExitStack) -> None:
        # A second later, because the database may have its own clock.
        shift = self._time - timezone.now() + timedelta(seconds=1)
        stack.enter_context(patch.object(clock, "offset", shift))


class no_real_transports(_Environment):  # noqa: N801
    """Refuse to open transports that reach the outside world, and fail a test that tried.

    This refuses Django's SMTP backend and its subclasses everywhere, and in deliveries of the queue
    every backend except Django's locmem, dummy and console. Raises ``RealTransportOpened`` at once
    and, because a delivery treats any error as the transport's, again at the end.
    """

    def _change(self, stack: ExitStack) -> None:
        opened: list[str] = []
        build = connection.build

        def refuse(backend: BaseEmailBackend, *_: Any, **__: Any) -> None:
            path = f"{type(backend).__module__}.{type(backend).__qualname__}"
            opened.append(path)
            raise RealTransportOpened(f"A test tried to open {path}.")

        def build_harmless(alias: str) -> BaseEmailBackend:
            backend = build(alias)
            if not type(backend).__module__.startswith(_HARMLESS):
                refuse(backend)
            return backend

        def report() -> None:
            if opened:
                raise RealTransportOpened(
                    f"The test tried to open {', '.join(sorted(set(opened)))}. With "
                    "EPICA_MAIL['REAL_TRANSPORTS_IN_TESTS'] off, the queue delivers to mail.outbox "
                    "under Django's test runner."
                )

        stack.callback(report)
        stack.enter_context(patch.object(connection, "build", build_harmless))
        stack.enter_context(patch.object(DjangoSMTPBackend, "open", refuse))
