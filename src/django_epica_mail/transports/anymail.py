"""HTTP providers, through anymail's backends: prepares messages and classifies the answers.

anymail is optional, so its classes and attributes are recognised by name.
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
"""The key of our id in the metadata that providers repeat in their events."""

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
"""Errors of Amazon SES that come with status 400 but are more specific than it."""

_EXCEPTIONS_MODULE = "anymail.exceptions"
_NOT_POSTED = frozenset(
    (
        *("ConnectTimeout", "ConnectTimeoutError", "NewConnectionError", "NameResolutionError"),
        *("EndpointConnectionError", "NoCredentialsError", "PartialCredentialsError"),
    )
)
"""Classes of errors raised before anything is posted to the provider."""
_REFUSAL_KIND = {"invalid": Kind.PERMANENT, "rejected": Kind.PERMANENT, "failed": Kind.TRANSIENT}
"""What anymail's status of a recipient means if the provider did not accept it."""
_METADATA_PROVIDERS = frozenset(
    (
        *("Amazon SES", "Brevo", "Mailgun", "Mailjet", "Mailtrap", "Mandrill", "Postmark"),
        *("Resend", "Scaleway", "SendGrid", "SparkPost", "Test", "Unisender Go"),
    )
)
_TRACKING_PROVIDERS = frozenset(
    (
        *("MailerSend", "Mailgun", "Mailjet", "Mandrill", "Postmark", "SendGrid", "SparkPost"),
        *("Test", "Unisender Go"),
    )
)
_MAX_RETRY_AFTER = 24 * 3600.0
"""Seconds; a longer ``Retry-After`` is ignored."""


def is_provider(backend: BaseEmailBackend | type[BaseEmailBackend]) -> bool:
    """Return whether a backend is one of anymail's."""
    cls = backend if isinstance(backend, type) else type(backend)
    return any(base.__module__ == "anymail.backends.base" for base in cls.__mro__)


def restrain(backend: Any) -> None:
    """Limit a backend to the time allowed for one mail, and stop boto3 from retrying on its own.

    boto3 would also retry after a time-out, when the provider may have accepted the mail.
    """
    seconds = conf.get().send_timeout / 2  # once to connect, once to read the answer
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
    """Add our id to a message, and drop the addresses that ``recipients()`` leaves out.

    SMTP uses ``recipients()``; anymail reads To, Cc and Bcc instead.
    """
    remaining = Counter(message.recipients())
    for name in ("to", "cc", "bcc"):
        kept = []
        for address in getattr(message, name) or ():
            if remaining[address]:
                remaining[address] -= 1
                kept.append(address)
        setattr(message, name, kept)
    our_id = getattr(message, ID, None)
    given = getattr(message, "metadata", None)
    if our_id and backend.esp_name in _METADATA_PROVIDERS:
        known = given if isinstance(given, Mapping) else {}
        message.metadata = {**known, ID: our_id}  # type: ignore[attr-defined]


def tracks(backend: Any) -> bool:
    """Return whether a provider tracks opens and clicks if a message asks for it."""
    return backend.esp_name in _TRACKING_PROVIDERS


def result(message: EmailMessage, failure: Failure | None, seconds: float) -> Result:
    """Return what a provider answered about a message and each of its recipients."""
    status = getattr(message, "anymail_status", None)
    statuses = getattr(status, "recipients", None) or {}
    code = getattr(getattr(status, "esp_response", None), "status_code", None)
    if failure is not None and not statuses:
        return Result(failure=failure, code=failure.code, seconds=seconds)
    if not statuses:
        reply = "Nothing was sent: the mail was cancelled before it reached the provider."
        failure = Failure(kind=Kind.MESSAGE, reply=reply)
        return Result(failure=failure, seconds=seconds)
    by_address = {addresses.canonical(address): it for address, it in statuses.items()}
    refused = {}
    for position, address in enumerate(message.recipients()):
        word = getattr(by_address.get(addresses.canonical(address)), "status", None)
        if word in _REFUSAL_KIND:
            reply = f"The provider reported: {word}."
            refused[position] = Failure(kind=_REFUSAL_KIND[word], reply=reply)
    if failure is None and len(refused) == len(message.recipients()):
        failure = mildest(refused.values())
    ids = [str(it.message_id) for it in statuses.values() if it.message_id not in (None, "")]
    return Result(
        failure=failure,
        refused=refused,
        code=failure.code if failure else code,
        reply=", ".join(sorted({str(it.status) for it in statuses.values()})),
        seconds=seconds,
        provider_id=ids[0][:255] if ids else "",
    )


def classify(error: Exception) -> Failure | None:
    """Return what an error of an anymail backend means, or ``None`` for any other error.

    ``UNKNOWN`` if the provider may have accepted the mail: a time-out after posting, or a gateway
    error.
    """
    names = {base.__name__ for base in type(error).__mro__ if base.__module__ == _EXCEPTIONS_MODULE}
    if not names:
        return None
    status = _http_status(error)
    return Failure(
        kind=_failure_kind(error, names, status),
        code=status,
        reply=reply_text(f"{type(error).__name__}: {error}"),
        retry_after=_retry_after(error),
    )


def _http_status(error: Exception) -> int | None:
    """Return the HTTP status of a provider's answer, from an error of anymail or boto3."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if status is None and isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and 100 <= status < 600 else None


def _failure_kind(error: Exception, names: set[str], status: int | None) -> Kind:
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
        return Kind.MESSAGE  # an address, a feature or a value that the provider does not support
    return Kind.OUTAGE if _NOT_POSTED & set(_error_class_names(error)) else Kind.UNKNOWN


def _error_class_names(error: BaseException) -> Iterator[str]:
    """Yield the class names of an error, its causes and the errors among its arguments."""
    seen: set[int] = set()
    pending: list[object] = [error]
    while pending:
        current = pending.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield from (base.__name__ for base in type(current).__mro__)
        reason = getattr(current, "reason", None)
        pending += [current.__cause__, current.__context__, reason, *current.args]


def _retry_after(error: Exception) -> float | None:
    """Return the seconds in a ``Retry-After`` header (RFC 9110, section 10.2.3).

    Its other form, a date, is ignored: it would need a clock.
    """
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        value = headers.get("retry-after", "")
    else:
        value = (getattr(response, "headers", None) or {}).get("Retry-After", "")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds <= _MAX_RETRY_AFTER else None
