"""What the errors of anymail's backends mean: the answers of providers by HTTP.

By the names of their classes, for anymail need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterator

from django_epica_mail.retry import Failure, Kind, reply_text

_ANYMAIL = "anymail.exceptions"
_OF_HTTP = {
    401: Kind.OUTAGE,
    403: Kind.OUTAGE,
    408: Kind.UNKNOWN,
    429: Kind.THROTTLED,
    500: Kind.TRANSIENT,
    503: Kind.TRANSIENT,
}
_NEVER_CONNECTED = frozenset(
    {"ConnectTimeout", "ConnectTimeoutError", "NewConnectionError", "NameResolutionError"}
)
_LONGEST_WAIT = 24 * 3600.0


def classify(error: Exception) -> Failure | None:
    """Return what an error of an anymail backend means, or ``None`` for any other error.

    What leaves open whether the provider took the mail is ``UNKNOWN``: a time-out after posting,
    and a gateway that does not say.
    """
    names = {base.__name__ for base in type(error).__mro__ if base.__module__ == _ANYMAIL}
    if not names:
        return None
    status = _http_status(error)
    return Failure(
        kind=_kind(error, names, status),
        code=status,
        reply=reply_text(f"{type(error).__name__}: {error}"),
        retry_after=_retry_after(error),
    )


def _http_status(error: Exception) -> int | None:
    """Return the HTTP status of a provider's answer, as anymail's errors carry it."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 100 <= status < 600 else None


def _kind(error: Exception, names: set[str], status: int | None) -> Kind:
    if status is not None:
        if status in _OF_HTTP:
            return _OF_HTTP[status]
        return Kind.PERMANENT if 400 <= status < 500 else Kind.UNKNOWN
    if "AnymailConfigurationError" in names:
        return Kind.OUTAGE
    if "AnymailRecipientsRefused" in names:
        return Kind.PERMANENT
    if "AnymailAPIError" not in names:
        return Kind.MESSAGE  # an address, a feature or a value that the provider cannot do
    return Kind.OUTAGE if _NEVER_CONNECTED & set(_causes(error)) else Kind.UNKNOWN


def _causes(error: BaseException) -> Iterator[str]:
    """Yield the names of the classes of an error, of its causes, and of errors it was given."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield from (base.__name__ for base in type(one).__mro__)
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]


def _retry_after(error: Exception) -> float | None:
    """Return the seconds of a ``Retry-After`` header; RFC 9110, section 10.2.3.

    Its other form, a date, would need a clock.
    """
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        seconds = float(headers.get("Retry-After", ""))
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds <= _LONGEST_WAIT else None
