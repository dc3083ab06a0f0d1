"""What a test changes around itself: where mail goes, what time it is, what must not happen.

Each is a context manager, a decorator of functions and one of test cases, as Django's own
``override_settings`` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from django.test import override_settings
from django.test.utils import TestContextDecorator, _TestState
from django.utils import timezone

from django_epica_mail import clock
from django_epica_mail.broker import doorbell, result_backend
from django_epica_mail.delivery import rate_limits
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

_HARMLESS = tuple(f"django.core.mail.backends.{name}" for name in ("locmem", "dummy", "console"))
_LOCMEM = {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}


class RealTransportOpened(AssertionError):  # noqa: N818 - it says what happened
    """A test tried to open a transport that reaches the world outside."""


class _Environment(TestContextDecorator):
    """A change that can be undone; subclasses say which by ``_change``."""

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
    """Let mail go into the queue, as on the site itself, where the test runner has replaced it.

    Django's test runner lets all mail go to ``mail.outbox`` at once; within this, what the site
    sends through the queue is queued again, and delivered to ``mail.outbox`` by
    ``drain_email_queue``. No broker is rung, no result backend told, and the site's ``RATES`` are
    not counted. Raises ``ImproperlyConfigured`` where the site sends nothing through the queue.
    """

    def _change(self, stack: ExitStack) -> None:
        connection.close_connections()  # they may be kept by another test's settings
        stack.callback(connection.close_connections)
        stack.enter_context(override_settings(**_site_settings()))
        # A ring that reached a broker could wake a worker which knows nothing of this test.
        stack.enter_context(patch.object(doorbell, "_publish", return_value=True))
        stack.enter_context(patch.object(rate_limits, "_rates", return_value={}))
        stack.enter_context(patch.object(result_backend, "store", return_value=False))


def _site_settings() -> dict[str, Any]:
    """Return the settings of mail that the test runner replaced, its transports still being so."""
    replaced = getattr(_TestState, "saved_data", None)
    if transports.uses_mailers():
        mailers: Mapping[str, Mapping[str, Any]] = getattr(replaced, "mailers", settings.MAILERS)
        queues = {alias for alias, spec in mailers.items() if transports.is_queue(spec)}
        if queues:
            kept = {alias: mailers[alias] if alias in queues else _LOCMEM for alias in mailers}
            return {"MAILERS": kept}
        raise ImproperlyConfigured(
            f"No alias of MAILERS leads to the queue; there are: {', '.join(mailers)}. Name "
            f"{transports.QUEUE_BACKEND} in the settings that the tests run with."
        )
    backend = getattr(replaced, "email_backend", None) or settings.EMAIL_BACKEND
    if transports.is_queue({"BACKEND": backend}):
        return {"EMAIL_BACKEND": backend}
    raise ImproperlyConfigured(
        f"The site's EMAIL_BACKEND is {backend!r}, which is not the queue. Name "
        f"{transports.QUEUE_BACKEND} in the settings that the tests run with."
    )


class travel(_Environment):  # noqa: N801
    """Shift the queue's clock by the units of a ``timedelta``, as in ``travel(minutes=6)``.

    What is due, expired, leased or old is decided by it. The clock of Python, and so
    ``timezone.now()`` in the site's own code, stays as it is. Shifts within shifts add up.
    """

    def __init__(self, **units: float) -> None:
        super().__init__()
        self._shift = timedelta(**units)

    def _change(self, stack: ExitStack) -> None:
        stack.enter_context(patch.object(clock, "offset", clock.offset + self._shift))


class travel_to(_Environment):  # noqa: N801
    """Set the queue's clock to a time, an aware datetime, from which it runs on."""

    def __init__(self, time: datetime) -> None:
        super().__init__()
        if timezone.is_naive(time):
            raise ValueError(f"Give an aware datetime (see django.utils.timezone); it is {time!r}.")
        self._time = time

    def _change(self, stack: ExitStack) -> None:
        # A little later, for the database may have a clock of its own.
        shift = self._time - timezone.now() + timedelta(seconds=1)
        stack.enter_context(patch.object(clock, "offset", shift))


class no_real_transports(_Environment):  # noqa: N801
    """Refuse to open a transport that reaches the world outside, and fail the test that tried.

    Refused are Django's SMTP backend and its subclasses, whoever opens them, and in deliveries of
    the queue everything but Django's locmem, dummy and console backends. Raises
    ``RealTransportOpened`` where that happens and, since a delivery takes any error for the
    transport's, once more at the end.
    """

    def _change(self, stack: ExitStack) -> None:
        opened: list[str] = []
        build = connection._build

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
                    f"The test tried to open {', '.join(sorted(set(opened)))}. Django's test "
                    "runner keeps mail inside where EPICA_MAIL['REAL_TRANSPORTS_IN_TESTS'] is off."
                )

        stack.callback(report)
        stack.enter_context(patch.object(connection, "_build", build_harmless))
        stack.enter_context(patch.object(DjangoSMTPBackend, "open", refuse))
