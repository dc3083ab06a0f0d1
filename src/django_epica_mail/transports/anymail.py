"""Providers by HTTP, through anymail's backends: what they are given, and what they answer.

By the names of anymail's classes and attributes, for anymail need not be installed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from django_epica_mail import conf
from django_epica_mail.messages import addresses
from django_epica_mail.retry import Failure, Kind, Result, mildest, reply_text

ID = "epica_mail_id"
"""The name of our id in the metadata that providers repeat in their events."""

_ANYMAIL = "anymail.exceptions"
HTTP_STATUS_KIND = {
    401: Kind.OUTAGE,
    403: Kind.OUTAGE,
    408: Kind.UNKNOWN,
    429: Kind.THROTTLED,
    500: Kind.TRANSIENT,
    503: Kind.TRANSIENT,
}
AMAZON_ERROR_KIND = {
    "ThrottlingException": Kind.THROTTLED,
    "Throttling": Kind.THROTTLED,
    "LimitExceededException": Kind.THROTTLED,
    "SendingPausedException": Kind.OUTAGE,
    "AccountSuspendedException": Kind.OUTAGE,
    "MailFromDomainNotVerifiedException": Kind.OUTAGE,
    "ExpiredTokenException": Kind.OUTAGE,
    "UnrecognizedClientException": Kind.OUTAGE,
}
"""Errors of Amazon SES that come with a status of 400 and mean more than that."""

_NEVER_SENT = frozenset(
    (
        *("ConnectTimeout", "ConnectTimeoutError", "NewConnectionError", "NameResolutionError"),
        *("EndpointConnectionError", "NoCredentialsError", "PartialCredentialsError"),
    )
)
_REFUSED = {"invalid": Kind.PERMANENT, "rejected": Kind.PERMANENT, "failed": Kind.TRANSIENT}
"""What anymail's status of one recipient means, where the provider did not take it."""

_WITH_METADATA = frozenset(
    (
        *("Amazon SES", "Brevo", "Mailgun", "Mailjet", "Mailtrap", "Mandrill", "Postmark"),
        *("Resend", "Scaleway", "SendGrid", "SparkPost", "Test", "Unisender Go"),
    )
)
_WITH_TRACKING = frozenset(
    (
        *("MailerSend", "Mailgun", "Mailjet", "Mandrill", "Postmark", "SendGrid", "SparkPost"),
        *("Test", "Unisender Go"),
    )
)
_LONGEST_WAIT = 24 * 3600.0


def is_provider(backend: BaseEmailBackend | type[BaseEmailBackend]) -> bool:
    """Tell whether a backend is one of anymail's."""
    cls = backend if isinstance(backend, type) else type(backend)
    return any(base.__module__ == "anymail.backends.base" for base in cls.__mro__)


def restrain(backend: Any) -> None:
    """Keep a backend within the time of one mail, and boto3 from posting a mail by itself again.

    It does so after a time-out too, when the mail may have been taken.
    """
    seconds = conf.get().send_timeout / 2  # for connecting, and again for the answer
    timeout = getattr(backend, "timeout", None)
    if isinstance(timeout, (int, float)):
        backend.timeout = min(timeout, seconds)
    config = getattr(backend, "client_params", {}).get("config")
    if config is not None:
        once = type(config)(
            retries=config.retries or {"total_max_attempts": 1},
            connect_timeout=min(config.connect_timeout, seconds),
            read_timeout=min(config.read_timeout, seconds),
        )
        backend.client_params["config"] = config.merge(once)


def prepare(backend: Any, message: EmailMessage) -> None:
    """Give a message our id, and take from it who is not to get it.

    anymail reads To, Cc and Bcc where SMTP goes by ``recipients()``.
    """
    left = Counter(message.recipients())
    for name in ("to", "cc", "bcc"):
        kept = []
        for address in getattr(message, name) or ():
            if left[address]:
                left[address] -= 1
                kept.append(address)
        setattr(message, name, kept)
    our_id = getattr(message, ID, None)
    given = getattr(message, "metadata", None)
    if our_id and backend.esp_name in _WITH_METADATA:
        known = given if isinstance(given, Mapping) else {}
        message.metadata = {**known, ID: our_id}  # type: ignore[attr-defined]


def tracks(backend: Any) -> bool:
    """Tell whether a provider counts opens and clicks where a message asks for it."""
    return backend.esp_name in _WITH_TRACKING


def result(message: EmailMessage, failure: Failure | None, seconds: float) -> Result:
    """Return what a provider said of a message and of each of its recipients."""
    status = getattr(message, "anymail_status", None)
    said = getattr(status, "recipients", None) or {}
    code = getattr(getattr(status, "esp_response", None), "status_code", None)
    if failure is not None and not said:
        return Result(failure=failure, code=failure.code, seconds=seconds)
    if not said:
        reply = "Nothing was sent: the mail was stopped on its way to the provider."
        failure = Failure(kind=Kind.MESSAGE, reply=reply)
        return Result(failure=failure, seconds=seconds)
    by_address = {_bare(address): it for address, it in said.items()}
    refused = {}
    for position, address in enumerate(message.recipients()):
        word = getattr(by_address.get(_bare(address)), "status", None)
        if word in _REFUSED:
            refused[position] = Failure(kind=_REFUSED[word], reply=f"The provider says: {word}.")
    if failure is None and len(refused) == len(message.recipients()):
        failure = mildest(refused.values())
    ids = [str(it.message_id) for it in said.values() if it.message_id not in (None, "")]
    return Result(
        failure=failure,
        refused=refused,
        code=failure.code if failure else code,
        reply=", ".join(sorted({str(it.status) for it in said.values()})),
        seconds=seconds,
        provider_id=ids[0][:255] if ids else "",
    )


def _bare(address: str) -> str:
    return addresses.bare(address).lower()


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
    """Return the HTTP status of a provider's answer, as anymail's and boto3's errors carry it."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if status is None and isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and 100 <= status < 600 else None


def _kind(error: Exception, names: set[str], status: int | None) -> Kind:
    if status is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            code = response.get("Error", {}).get("Code")
            if code in AMAZON_ERROR_KIND:
                return AMAZON_ERROR_KIND[code]
        if status in HTTP_STATUS_KIND:
            return HTTP_STATUS_KIND[status]
        return Kind.PERMANENT if 400 <= status < 500 else Kind.UNKNOWN
    if "AnymailConfigurationError" in names:
        return Kind.OUTAGE
    if "AnymailRecipientsRefused" in names:
        return Kind.PERMANENT
    if "AnymailAPIError" not in names:
        return Kind.MESSAGE  # an address, a feature or a value that the provider cannot do
    return Kind.OUTAGE if _NEVER_SENT & set(_causes(error)) else Kind.UNKNOWN


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
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        said = headers.get("retry-after", "")
    else:
        said = (getattr(response, "headers", None) or {}).get("Retry-After", "")
    try:
        seconds = float(said)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds <= _LONGEST_WAIT else None
