"""Rate limits in recipients per second, minute, hour or day, shared by all workers of a site.

``EPICA_MAIL["RATES"]`` limits a transport (``"ses": "14/s"``), a recipient's domain
(``"@gmail.com": "5/s"``) or all mail (``"*"``); Celery's annotation ``rate_limit`` on
``send_email_task`` limits all mail too. The library ``limits`` does the counting. While its store
is unreachable, limited mail waits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from django_epica_mail import _compat, conf, rules
from django_epica_mail.broker import celery_config, redis_pool
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.messages import addresses
from django_epica_mail.rules import LEVELS

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

EVERYTHING = "*"
"""The key of the limit on all mail."""

_STORE_LOST = 5.0
"""Seconds that limited mail waits if the store is unreachable."""

_DAMAGED = frozenset({"ResponseError", "ValueError", "TypeError"})
"""The classes of errors where somebody has written something else under a key of Redis. What
concerns the whole store, such as no right to write, has a class of its own."""

_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an e-mail may not be sent now."""

    seconds: float
    """Seconds until it may be sent."""
    is_of_domain: bool
    """Whether only mail to one domain is held back."""


class _StoreLost(Exception):  # noqa: N818 - an answer, not an error
    """The store of the rates could not be asked, now or a moment ago."""


class _Budgets:
    """The limits, as this process sees them; ``uri`` is ``RATES_STORAGE``."""

    def __init__(self, rates: Mapping[str, str], uri: str | None) -> None:
        try:
            self._limits: Any = import_module("limits")
        except ImportError as error:
            raise MissingExtra(
                "EPICA_MAIL['RATES'] needs a package that is not installed: "
                'pip install "django-epica-mail[rates]".'
            ) from error
        self.items = {key: self._limits.parse(_spelled_out(rate)) for key, rate in rates.items()}
        self.turns: dict[tuple[str, int], float] = {}
        """The last turn of mail that was postponed, by limit and priority, in monotonic seconds."""
        self._uri = uri
        self._window: Any = None
        self._silent_until = 0.0
        if uri is not None:
            self._window = self._counter(uri)
        elif not redis_pool.is_redis():
            raise ImproperlyConfigured("the broker is no Redis, and RATES_STORAGE names none.")

    def ask(self, key: str, question: Callable[[], _T]) -> _T:
        """Return what the store says about a key; raise ``_StoreLost`` if it says nothing.

        After an error the store is left alone for ``RING_PAUSE``, and one line of the log says so.
        """
        if time.monotonic() < self._silent_until:
            raise _StoreLost
        try:
            try:
                return self._ask(question)
            except Exception as error:
                if type(error).__name__ not in _DAMAGED:
                    raise
                self._window.clear(self.items[key], key)
                logger.warning("The uses of the rate for %s cannot be read: begun anew.", key)
                return self._ask(question)
        except Exception as error:  # noqa: BLE001 - any store, any error: limited mail waits
            pause = conf.get().ring_pause
            self._silent_until = time.monotonic() + pause
            logger.warning(
                "The store of the rate limits is unreachable (%s). Limited mail waits; the next "
                "attempt is in %s seconds.",
                type(error).__name__,
                pause,
            )
            raise _StoreLost from None

    def _ask(self, question: Callable[[], _T]) -> _T:
        if self._uri is not None:
            return question()
        if self._window is not None:
            with contextlib.suppress(Exception):
                return question()
        # Nobody has been asked yet, or the broker is lost, and of several another may be alive.
        pool, prefix = redis_pool.connect()
        self._window = self._counter("redis://", prefix, connection_pool=pool)
        return question()

    def _counter(self, uri: str, prefix: str = "", **options: Any) -> Any:
        """Return what counts in a store; ``prefix`` is that of the site's keys."""
        timeout = conf.get().ring_timeout
        if uri.startswith(("redis", "valkey", "unix")) and not options:
            options = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        storage = self._limits.storage.storage_from_string(uri, **options)
        if prefix:
            # The name in version 5 of the library, and the one before.
            storage.key_prefix = storage.PREFIX = f"{prefix}{storage.PREFIX}"
        return self._limits.strategies.MovingWindowRateLimiter(storage)

    def over_all(self, transport: str) -> list[str]:
        """Return the keys of the limits on all mail of a transport."""
        return [key for key in (transport, EVERYTHING) if key in self.items]

    def remaining(self, key: str) -> int:
        return max(0, int(self.ask(key, lambda: self._stats(key).remaining)))

    def wait(self, key: str) -> float:
        """Return the seconds until the oldest use of a budget expires.

        At most those in which every use does: whoever can write to the store, or a host whose clock
        is ahead, could otherwise put mail off for ever.
        """
        reset = float(self.ask(key, lambda: self._stats(key).reset_time))
        return max(0.01, min(reset - time.time(), float(self.items[key].get_expiry())))

    def has(self, key: str, cost: int) -> bool:
        item, cost = self.items[key], self._bounded(key, cost)
        return bool(self.ask(key, lambda: self._window.test(item, key, cost=cost)))

    def take(self, key: str, cost: int) -> bool:
        item, cost = self.items[key], self._bounded(key, cost)
        return bool(self.ask(key, lambda: self._window.hit(item, key, cost=cost)))

    def _stats(self, key: str) -> Any:
        return self._window.get_window_stats(self.items[key], key)

    def try_store(self) -> None:
        """Count something in the store that limits nothing; raise the store's error."""
        item = next(iter(self.items.values()))
        self._ask(lambda: self._window.hit(item, "epica-mail-doctor"))

    def refusal(self, key: str, cost: int, priority: int) -> Refusal:
        """Return how long an exhausted budget refuses an e-mail."""
        is_of_domain, wait = key.startswith("@"), self.wait(key)
        return Refusal(self.turn(key, cost, priority, wait) if is_of_domain else wait, is_of_domain)

    def refusal_by_lost_store(self, costs: Mapping[str, int], priority: int) -> Refusal:
        """Return how long an e-mail with these costs waits, as long as the store says nothing."""
        if not all(key.startswith("@") for key in costs):
            return Refusal(_STORE_LOST, is_of_domain=False)
        turns = (self.turn(key, cost, priority, _STORE_LOST) for key, cost in costs.items())
        return Refusal(max(turns), is_of_domain=True)

    def turn(self, key: str, cost: int, priority: int, wait: float) -> float:
        """Return the seconds until an e-mail's turn among those that this process postponed.

        Each is postponed once, instead of all of them again and again. Only what is at least as
        urgent comes before it; what is less so may find the budget used up, and is then postponed
        again. ``wait`` is the seconds until there may be any budget.
        """
        item, now = self.items[key], time.monotonic()
        spacing = item.get_expiry() / item.amount * self._bounded(key, cost)
        before = [self.turns.get((key, level), 0.0) for level in LEVELS if level >= priority]
        turn: float = max([*before, now + wait]) + spacing
        self.turns[key, priority] = turn
        return turn - now

    def _bounded(self, key: str, cost: int) -> int:
        """Return the cost, at most the whole budget."""
        return min(cost, int(self.items[key].amount))


_budgets: dict[tuple[tuple[tuple[str, str], ...], str | None], _Budgets] = {}
_compat.run_after_fork(_budgets.clear)


def _rates() -> Mapping[str, str]:
    """Return every rate of the site, including the annotation of Celery's task."""
    of_celery, rates = celery_config.site_rate(), conf.get().rates
    if not (of_celery or rates):
        return {}
    everything = {} if of_celery is None else {EVERYTHING: of_celery}
    return everything | {
        rules.address_pattern(key) if key.startswith("@") else key: rate
        for key, rate in rates.items()
    }


def _current() -> _Budgets | None:
    """Return the budgets of the site's settings; ``None`` if nothing is limited."""
    rates = _rates()
    if not rates:
        return None
    storage = conf.get().rates_storage
    key = (tuple(rates.items()), storage)
    if key not in _budgets:
        _budgets[key] = _Budgets(rates, storage)
    return _budgets[key]


def is_limited() -> bool:
    """Return whether the site limits anything."""
    return bool(_rates())


def problem() -> str | None:
    """Return why the site's rates cannot be counted, or ``None``; does not ask the store.

    The text holds no URI, which may have a password.
    """
    try:
        _current()
    except (ImproperlyConfigured, MissingExtra) as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"RATES_STORAGE is no URI that the library limits takes ({type(error).__name__})."
    return None


def store_problem() -> str | None:
    """Return the class of the error of the store of the rates, or ``None``; asks the store."""
    try:
        budgets = _current()
        if budgets is not None:
            budgets.try_store()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return type(error).__name__
    return None


def allowance(transport: str) -> int | None:
    """Return how many recipients a transport may get now; ``None`` if it is not limited."""
    budgets = _current()
    if budgets is None or not (keys := budgets.over_all(transport)):
        return None
    try:
        return min(budgets.remaining(key) for key in keys)
    except _StoreLost:
        return 0


def all_mail_allows(cost: int) -> bool:
    """Return whether the limit on all mail, if there is one, allows ``cost`` recipients now."""
    budgets = _current()
    if budgets is None or EVERYTHING not in budgets.items:
        return True
    try:
        return budgets.remaining(EVERYTHING) >= cost
    except _StoreLost:
        return False


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
    except _StoreLost:
        return _STORE_LOST


def take(transport: str, recipients: Iterable[str], priority: int = LEVELS.start) -> Refusal | None:
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
                    return budgets.refusal(key, cost, priority)
    except _StoreLost:
        return budgets.refusal_by_lost_store(wanted, priority)
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
