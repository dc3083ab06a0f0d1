"""Decides, when a mail is queued, where it goes and how urgent it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

from django.utils.timezone import is_naive

from django_epica_mail import rules
from django_epica_mail.rules.routes import Facts, RetryPolicy, Rule, parse_retry

QUEUE, QUEUE_PRIORITY = "emails", 9
"""Queue and priority of single mail."""

BULK_QUEUE, BULK_PRIORITY = "bulk_emails", 5
"""Queue and priority of bulk mail."""

ADDITIONS = {"unsubscribe": "unsubscribe", "opens": "track_opens", "clicks": "track_clicks"}
"""What the worker may add to a mail, by the word stored in its row: the option that asks for it."""

_FIRST_YEAR, _LAST_YEAR = 1900, 9000
KEY_LENGTH = 255
"""Maximum length of an idempotency key, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may specify in addition to the message; ``None`` means unspecified."""

    transport: str | None = None
    """Alias of the transport that sends the mail."""
    queue: str | None = None
    """The queue the mail waits in, which is also the Celery queue that is rung."""
    priority: int | str | None = None
    """0 (least urgent) to 9 (most), or a name of ``PRIORITIES``."""
    category: str | None = None
    """What sort of mail it is, by a name of the site's own."""
    send_at: datetime | None = None
    """When to send the mail, as an aware datetime."""
    expires_at: datetime | None = None
    """When the mail is no longer worth sending, as an aware datetime."""
    expires_after: float | timedelta | None = None
    """Seconds or a timedelta from ``send_at``, or from now, until it is no longer worth sending."""
    idempotency_key: str | None = None
    """A name for this mail. If two calls use the same key, only the first queues anything."""
    retry: Any = None
    """When to try again, as ``rules.routes.parse_retry`` takes it: a list of delays in seconds, or
    a dict of ``max_retries``, ``delay``, ``factor`` and ``max_delay``."""
    on_unknown: str | None = None
    """``resend``, ``hold`` or ``fail``: what to do if the mail may have been accepted."""
    keep_content: str | None = None
    """``always``, ``until_sent`` or ``never``: how long body and attachments are kept."""
    store_result: bool | None = None
    """Whether to store the outcome in Celery's result backend too."""
    unsubscribe: bool | None = None
    """Whether a mail to one recipient offers one-click unsubscribe."""
    track_opens: bool | None = None
    """Whether to record when a mail to one recipient is opened."""
    track_clicks: bool | None = None
    """Whether to record which links in a mail to one recipient are followed."""
    template: str | None = None
    """The template the mail was rendered from, for the rules of ``ROUTES``."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` for invalid options."""
        for name in ("transport", "queue", "category"):
            value = getattr(self, name)
            if value is not None:
                rules.check_name(name, value)
        for name in ("send_at", "expires_at"):
            _check_time(name, getattr(self, name))
        _check_order(self.send_at, self.expires_at)
        if self.expires_after is not None:
            _check_expiry(self.expires_after, self.expires_at)
        if self.idempotency_key is not None:
            _check_key(self.idempotency_key)
        parse_retry(self.retry)
        if self.on_unknown is not None:
            rules.check_on_unknown("on_unknown", self.on_unknown)
        if self.keep_content is not None:
            rules.check_keep_content("keep_content", self.keep_content)
        if self.store_result not in (None, True, False):
            raise TypeError(
                f"store_result must be True or False; it is {rules.shown(self.store_result)}."
            )
        if self.priority is not None:
            rules.priority_number(self.priority)
        for name in ADDITIONS.values():
            if getattr(self, name) is not None:
                rules.check_flag(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The decisions for one mail."""

    queue: str
    priority: int
    transports: tuple[str, ...]
    """Aliases in the order they are used; empty: the site's default."""
    on_unknown: str
    keep_content: str
    max_retries: int
    retry_delays: tuple[float, ...]
    """Seconds before each retry; the last one repeats."""
    expires_after: timedelta | None
    additions: tuple[str, ...]
    """Keys of ``ADDITIONS``: what the worker adds to a mail to one recipient."""
    rule: int | None
    """Position in ``ROUTES`` of the rule that took effect."""


class Defaults(Protocol):
    """The settings of ``EPICA_MAIL`` used for routing."""

    @property
    def routes(self) -> Sequence[Rule]: ...
    @property
    def on_unknown(self) -> str: ...
    @property
    def keep_content(self) -> str: ...
    @property
    def max_retries(self) -> int: ...
    @property
    def retry_delay(self) -> float: ...
    @property
    def retry(self) -> RetryPolicy | None: ...


def decide(
    options: Options, facts: Facts, settings: Defaults, of_celery: Mapping[str, Any] | None = None
) -> Route:
    """Return the route of a mail.

    Precedence: the call's options, then the first rule that matches, then ``of_celery`` (the entry
    for our task in the site's ``CELERY_TASK_ROUTES``), then the defaults.
    """
    number, rule = _first_match(settings.routes, facts)
    celery = of_celery or {}
    queue, priority = (BULK_QUEUE, BULK_PRIORITY) if facts.is_bulk else (QUEUE, QUEUE_PRIORITY)
    if options.priority is not None:
        priority = rules.priority_number(options.priority)
    elif rule.priority is not None:
        priority = rule.priority
    elif celery.get("priority") is not None:
        priority = rules.priority_number(celery["priority"])
    keep_content = options.keep_content or rule.keep_content or settings.keep_content
    given = (parse_retry(options.retry), rule.retry, settings.retry)
    policies = [it for it in given if it is not None]
    return Route(
        queue=options.queue or rule.queue or celery.get("queue") or queue,
        priority=priority,
        transports=(options.transport,) if options.transport else rule.transports,
        on_unknown=options.on_unknown or rule.on_unknown or settings.on_unknown,
        keep_content=keep_content,
        max_retries=next(
            (it.max_retries for it in policies if it.max_retries is not None), settings.max_retries
        ),
        retry_delays=next((it.delays for it in policies if it.delays), (settings.retry_delay,)),
        expires_after=_span(_given(options.expires_after, rule.expires_after)),
        additions=tuple(
            word
            for word, name in ADDITIONS.items()
            if _given(getattr(options, name), getattr(rule, name))
            # Events store links. A link may be a secret if the mail's content is not kept.
            and (word != "clicks" or keep_content == "always")
        ),
        rule=number,
    )


def parse_options(given: Mapping[str, Any]) -> Options:
    """Return the options of a call; raise ``TypeError`` naming an unknown one."""
    check_names(given, sorted(item.name for item in fields(Options)))
    return Options(**given)


def check_names(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ``TypeError`` naming an unknown name and all known ones."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(f"There is no option {unknown[0]!r}. The options are: {', '.join(known)}.")


def _first_match(known: Sequence[Rule], facts: Facts) -> tuple[int | None, Rule]:
    for number, rule in enumerate(known):
        if rule.matches(facts):
            return number, rule
    return None, Rule()


def _given(first: Any, second: Any) -> Any:
    return second if first is None else first


def _span(seconds: float | timedelta | None) -> timedelta | None:
    return timedelta(seconds=seconds) if isinstance(seconds, (int, float)) else seconds


def _check_time(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime; it is {rules.shown(value)}.")
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise ValueError(
            f"{name} must be in the years {_FIRST_YEAR} to {_LAST_YEAR}, so that databases can "
            f"store it and what follows from it; it is {rules.shown(value)}."
        )
    if is_naive(value):
        raise ValueError(
            f"{name} must be an aware datetime (see django.utils.timezone); it is "
            f"{rules.shown(value)}."
        )


def _check_order(send_at: datetime | None, expires_at: datetime | None) -> None:
    # In UTC: two times of one zone are compared by their clocks, also where those are put back.
    if send_at is None or expires_at is None or in_utc(expires_at) > in_utc(send_at):
        return
    raise ValueError(
        f"expires_at must be after send_at, or the mail expires unsent; it is {expires_at}, and "
        f"send_at is {send_at}."
    )


def in_utc(moment: datetime) -> datetime:
    """Return an aware time in UTC, where adding a span gives the time that much later.

    In the zone of a place, Python adds to the reading of the clock, which jumps twice a year.
    """
    return moment.astimezone(timezone.utc)


def _check_expiry(after: object, at: datetime | None) -> None:
    if at is not None:
        raise TypeError("Give expires_at or expires_after, not both.")
    if isinstance(after, bool) or not isinstance(after, (int, float, timedelta)):
        raise TypeError(
            f"expires_after must be seconds or a timedelta; it is {rules.shown(after)}."
        )
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if not 0 < seconds <= rules.MOST_SECONDS:
        raise ValueError(
            f"expires_after must be above 0 and up to {rules.MOST_SECONDS} seconds; it is "
            f"{rules.shown(after)}."
        )


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= KEY_LENGTH or not key.isprintable():
        raise ValueError(
            f"idempotency_key must be a string of 1 to {KEY_LENGTH} printable characters; "
            f"it is {rules.shown(key)}."
        )
