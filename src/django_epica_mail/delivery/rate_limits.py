"""Rate limits in recipients per second, minute, hour or day, shared by all workers of a site.

``EPICA_MAIL["RATES"]`` limits a transport (``"ses": "14/s"``), a recipient's domain
(``"@gmail.com": "5/s"``) or all mail (``"*"``); Celery's annotation ``rate_limit`` on
``send_email_task`` limits all mail too. The library ``limits`` does the counting. While its store
is unreachable, limited mail waits.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from django_epica_mail import _compat, conf, rules
from django_epica_mail.broker import celery_config
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.messages import addresses

logger = logging.getLogger(__name__)

EVERYTHING = "*"
"""The key of the limit on all mail."""

_STORE_LOST = 5.0
"""Seconds that limited mail waits if the store is unreachable."""

_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an e-mail may not be sent now."""

    seconds: float
    """Seconds until it may be sent."""
    is_of_domain: bool
    """Whether only mail to one domain is held back."""


class _Budgets:
    """The limits, as this process sees them."""

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

    def over_all(self, transport: str) -> list[str]:
        """Return the keys of the limits on all mail of a transport."""
        return [key for key in (transport, EVERYTHING) if key in self.items]

    def remaining(self, key: str) -> int:
        return max(0, int(self._window.get_window_stats(self.items[key], key).remaining))

    def wait(self, key: str) -> float:
        """Return the seconds until the oldest use of a budget expires."""
        reset = float(self._window.get_window_stats(self.items[key], key).reset_time)
        return max(0.01, reset - time.time())

    def has(self, key: str, cost: int) -> bool:
        return bool(self._window.test(self.items[key], key, cost=self._bounded(key, cost)))

    def take(self, key: str, cost: int) -> bool:
        return bool(self._window.hit(self.items[key], key, cost=self._bounded(key, cost)))

    def refusal(self, key: str, cost: int) -> Refusal:
        """Return how long an exhausted budget refuses an e-mail."""
        is_of_domain = key.startswith("@")
        seconds = self.turn(key, cost) if is_of_domain else self.wait(key)
        return Refusal(seconds, is_of_domain)

    def turn(self, key: str, cost: int) -> float:
        """Return the seconds until an e-mail's turn among those that this process postponed.

        Each is postponed once, instead of all of them again and again.
        """
        item, now = self.items[key], time.monotonic()
        spacing = item.get_expiry() / item.amount * self._bounded(key, cost)
        self.turns[key] = max(self.turns.get(key, 0.0), now + self.wait(key)) + spacing
        return self.turns[key] - now

    def _bounded(self, key: str, cost: int) -> int:
        """Return the cost, at most the whole budget."""
        return min(cost, int(self.items[key].amount))


_budgets: dict[tuple[tuple[tuple[str, str], ...], str | None], _Budgets] = {}
_compat.run_after_fork(_budgets.clear)


def _rates() -> Mapping[str, str]:
    """Return every rate of the site, including the annotation of Celery's task."""
    of_celery = celery_config.site_rate()
    everything = {} if of_celery is None else {EVERYTHING: of_celery}
    return everything | {
        rules.address_pattern(key) if key.startswith("@") else key: rate
        for key, rate in conf.get().rates.items()
    }


def _current() -> _Budgets | None:
    """Return the budgets of the site's settings; ``None`` if nothing is limited."""
    rates = _rates()
    if not rates:
        return None
    storage = conf.get().rates_storage
    key = (tuple(rates.items()), storage)
    if key not in _budgets:
        _budgets[key] = _Budgets(rates, storage or celery_config.broker_url())
    return _budgets[key]


def is_limited() -> bool:
    """Return whether the site limits anything."""
    return bool(_rates())


def problem() -> str | None:
    """Return why the site's rates cannot be counted, or ``None``; does not ask the store."""
    try:
        _current()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"{type(error).__name__}: {error}"
    return None


def allowance(transport: str) -> int | None:
    """Return how many recipients a transport may get now; ``None`` if it is not limited."""
    budgets = _current()
    if budgets is None or not (keys := budgets.over_all(transport)):
        return None
    try:
        return min(budgets.remaining(key) for key in keys)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return 0


def bounded(transport: str, cost: int) -> int:
    """Return the cost of an e-mail, at most the smallest budget of a transport's limits."""
    budgets = _current()
    keys = budgets.over_all(transport) if budgets else []
    return min([cost, *(int(budgets.items[key].amount) for key in keys)]) if budgets else cost


def seconds_until(transport: str, cost: int = 1) -> float:
    """Return the seconds until the budget of a transport grows, if it is below ``cost``."""
    budgets = _current()
    if budgets is None:
        return 0.0
    keys = budgets.over_all(transport)
    try:
        return max((budgets.wait(k) for k in keys if budgets.remaining(k) < cost), default=0.0)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return _STORE_LOST


def take(transport: str, recipients: Iterable[str]) -> Refusal | None:
    """Take the budget of one e-mail, in recipients; return the refusal if it is exhausted."""
    budgets = _current()
    if budgets is None:
        return None
    costs = _costs(transport, recipients)
    wanted = {key: costs[key] for key in budgets.items if costs[key]}
    try:
        # Ask all before taking any; what other workers take meanwhile still refuses.
        for ask in (budgets.has, budgets.take):
            for key, cost in wanted.items():
                if not ask(key, cost):
                    return budgets.refusal(key, cost)
    except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
        _report(error)
        return Refusal(_STORE_LOST, is_of_domain=False)
    return None


def _costs(transport: str, recipients: Iterable[str]) -> Counter[str]:
    costs: Counter[str] = Counter()
    for recipient in recipients:
        domain = addresses.canonical(recipient).rpartition("@")[2]
        costs.update((transport, EVERYTHING, f"@{domain}"))
    return costs


def _spelled_out(rate: str) -> str:
    """Return a rate as ``limits`` parses it: ``14/s`` as ``14/second``, ``100/5m`` likewise."""
    amount, _, window = rate.partition("/")
    number = window.rstrip("smhd")
    unit = _UNITS.get(window[len(number) :], window[len(number) :])
    return f"{amount}/{number}{unit}"


def _report(error: Exception) -> None:
    logger.warning(
        "The store of the rate limits is unreachable (%s). Limited mail waits.",
        type(error).__name__,
    )
