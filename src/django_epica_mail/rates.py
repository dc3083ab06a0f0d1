"""Budgets of recipients per second, minute, hour or day, shared by all workers of a site.

``EPICA_MAIL["RATES"]`` limits a transport (``"ses": "14/s"``), a recipient's domain
(``"@gmail.com": "5/s"``) or all mail (``"*"``); Celery's annotation ``rate_limit`` on
``send_email_task`` limits all mail too. The counting is the library ``limits``'. While its store
cannot be reached, limited mail waits.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parseaddr
from importlib import import_module
from typing import Any

from django_epica_mail import conf, doorbell
from django_epica_mail.exceptions import MissingExtra

logger = logging.getLogger(__name__)

EVERYTHING = "*"
"""The key of the limit on all mail."""

_STORE_LOST = 5.0
"""Seconds that limited mail waits while the store of the limits cannot be reached."""

_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a mail may not go now."""

    key: str
    """The transport, ``@domain`` or ``EVERYTHING`` whose budget is used up."""
    seconds: float
    """How long until it may."""

    @property
    def is_of_domain(self) -> bool:
        """Whether mail to other domains may go all the same."""
        return self.key.startswith("@")


class _Budgets:
    """This process's view of the limits."""

    def __init__(self, rates: Mapping[str, str], uri: str) -> None:
        try:
            limits: Any = import_module("limits")
        except ImportError as error:
            raise MissingExtra(
                "EPICA_MAIL['RATES'] needs a package that is not installed: "
                'pip install "django-epica-mail[rates]".'
            ) from error
        self.items = {key: limits.parse(_spelled_out(rate)) for key, rate in rates.items()}
        timeout = conf.get().ring_timeout
        options: dict[str, Any] = {}
        if uri.startswith(("redis", "valkey", "unix")):
            options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        storage = limits.storage.storage_from_string(uri, **options)
        self._window = limits.strategies.MovingWindowRateLimiter(storage)
        self.turns: dict[str, float] = {}

    def remaining(self, key: str) -> int:
        return max(0, int(self._window.get_window_stats(self.items[key], key).remaining))

    def wait(self, key: str) -> float:
        """Return the seconds until the oldest use of a budget is forgotten."""
        reset = float(self._window.get_window_stats(self.items[key], key).reset_time)
        return max(0.01, reset - time.time())

    def has(self, key: str, cost: int) -> bool:
        return bool(self._window.test(self.items[key], key, cost=self._bounded(key, cost)))

    def take(self, key: str, cost: int) -> bool:
        return bool(self._window.hit(self.items[key], key, cost=self._bounded(key, cost)))

    def turn(self, key: str, cost: int) -> float:
        """Return the seconds until it is a mail's turn, in the row of those this process put off.

        So that each is put off once, and not all of them again and again.
        """
        item, now = self.items[key], time.monotonic()
        spacing = item.get_expiry() / item.amount * self._bounded(key, cost)
        self.turns[key] = max(self.turns.get(key, 0.0), now + self.wait(key)) + spacing
        return self.turns[key] - now

    def _bounded(self, key: str, cost: int) -> int:
        """A mail to more recipients than the whole budget has takes all of it."""
        return min(cost, int(self.items[key].amount))


_budgets: dict[tuple[tuple[tuple[str, str], ...], str], _Budgets] = {}
os.register_at_fork(after_in_child=_budgets.clear)


def _current() -> _Budgets | None:
    """Return the budgets of the site's settings, or ``None`` if nothing is limited."""
    rates = dict(conf.get().rates)
    of_celery = doorbell.site_rate()
    if of_celery is not None:
        rates.setdefault(EVERYTHING, of_celery)
    if not rates:
        return None
    uri = conf.get().rates_storage or doorbell.broker_url()
    key = (tuple(rates.items()), uri)
    if key not in _budgets:
        _budgets[key] = _Budgets(rates, uri)
    return _budgets[key]


def is_limited() -> bool:
    """Tell whether the site limits anything."""
    return bool(conf.get().rates) or doorbell.site_rate() is not None


def problem() -> str | None:
    """Return why the site's rates cannot be counted, if so; asks no store."""
    try:
        _current()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"
    return None


def allowance(transport: str) -> int | None:
    """Return how many recipients a transport may be given now; ``None``: as many as there are."""
    budgets = _current()
    keys = [] if budgets is None else [k for k in (transport, EVERYTHING) if k in budgets.items]
    if budgets is None or not keys:
        return None
    try:
        return min(budgets.remaining(key) for key in keys)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return 0


def seconds_until(transport: str) -> float:
    """Return how long until a transport without allowance may be given something."""
    budgets = _current()
    if budgets is None:
        return 0.0
    keys = [key for key in (transport, EVERYTHING) if key in budgets.items]
    try:
        return max((budgets.wait(k) for k in keys if not budgets.remaining(k)), default=0.0)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return _STORE_LOST


def take(transport: str, recipients: Iterable[str]) -> Refusal | None:
    """Use up the budget of one mail, counted in recipients; return why it may not go, if so."""
    budgets = _current()
    if budgets is None:
        return None
    costs = _costs(transport, recipients)
    wanted = {key: costs[key] for key in budgets.items if costs[key]}
    try:
        # All are asked before any is used; what others use meanwhile refuses all the same.
        for ask in (budgets.has, budgets.take):
            for key, cost in wanted.items():
                if not ask(key, cost):
                    is_domain = key.startswith("@")
                    seconds = budgets.turn(key, cost) if is_domain else budgets.wait(key)
                    return Refusal(key, seconds)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return Refusal(transport, _STORE_LOST)
    return None


def _costs(transport: str, recipients: Iterable[str]) -> Counter[str]:
    costs: Counter[str] = Counter()
    for recipient in recipients:
        domain = parseaddr(str(recipient))[1].rpartition("@")[2].lower()
        costs.update((transport, EVERYTHING, f"@{domain}"))
    return costs


def _spelled_out(rate: str) -> str:
    """Return a rate as ``limits`` reads it: ``14/s`` as ``14/second``, ``100/5m`` likewise."""
    amount, _, window = rate.partition("/")
    number = window.rstrip("smhd")
    unit = _UNITS.get(window[len(number) :], window[len(number) :])
    return f"{amount}/{number}{unit}"


def _report(error: Exception) -> None:
    logger.warning(
        "The store of the rates cannot be reached (%s). Limited mail waits.", type(error).__name__
    )
