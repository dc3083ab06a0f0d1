"""HTTP providers, through anymail's backends: prepares messages and classifies the answers.

anymail is optional, so its classes and attributes are recognised by name.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from django_epica_mail import conf
from django_epica_mail.messages import RawMessage, Rules, addresses, fields
from django_epica_mail.replies import reply_text
from django_epica_mail.retry import Failure, Kind, Result, Scope, mildest

ID = "epica_mail_id"
"""The key of our id in the metadata that providers repeat in their events."""

ADDED_MESSAGE_ID = "epica_mail_added_message_id"
"""The attribute of a message whose Message-ID is not the caller's."""

_MAYBE_TAKEN = (Kind.UNKNOWN, Scope.SERVER)
STATUS_FAULTS = {
    401: (Kind.OUTAGE, Scope.CREDENTIALS),
    403: (Kind.TRANSIENT, Scope.SERVER),
    429: (Kind.THROTTLED, Scope.SERVER),
    **dict.fromkeys((408, 500, 502, 503, 504), _MAYBE_TAKEN),
}
"""What an HTTP status means after posting. Another 4xx refuses this mail; anything else leaves open
whether the provider took it."""

PROVIDER_FAULTS = {
    # docs.aws.amazon.com/ses/latest/APIReference-V2: SendEmail, common errors
    "Amazon SES": {
        "ThrottlingException": (Kind.THROTTLED, Scope.SERVER),
        "Throttling": (Kind.THROTTLED, Scope.SERVER),
        "LimitExceededException": (Kind.THROTTLED, Scope.SERVER),
        "SendingPausedException": (Kind.OUTAGE, Scope.SERVER),
        "AccountSuspendedException": (Kind.OUTAGE, Scope.SERVER),
        "MailFromDomainNotVerifiedException": (Kind.TRANSIENT, Scope.SENDER),
        "ExpiredTokenException": (Kind.OUTAGE, Scope.CREDENTIALS),
        "InvalidClientTokenId": (Kind.OUTAGE, Scope.CREDENTIALS),
        "MissingAuthenticationTokenException": (Kind.OUTAGE, Scope.CREDENTIALS),
        "SignatureDoesNotMatch": (Kind.OUTAGE, Scope.CREDENTIALS),
        "UnrecognizedClientException": (Kind.OUTAGE, Scope.CREDENTIALS),
    },
    # resend.com/docs/api-reference/errors
    "Resend": {
        "invalid_api_key": (Kind.OUTAGE, Scope.CREDENTIALS),
        "403 validation_error": (Kind.TRANSIENT, Scope.SENDER),  # the domain is not verified
        "concurrent_idempotent_requests": (Kind.TRANSIENT, Scope.MAIL),
        "invalid_idempotent_request": (Kind.UNKNOWN, Scope.MAIL),  # it took a similar one before
    },
    # the field that an error is about: the sender is no verified identity
    "SendGrid": {"403 from": (Kind.TRANSIENT, Scope.SENDER)},
}
"""What an error's name means, alone or after the status, where it says more than the status."""

_TAKEN_BEFORE = {"Brevo": "400 duplicate_parameter"}
"""What a provider answers to an idempotency key under which it took a mail before."""

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
_NO_MESSAGE_ID_WITH_TEMPLATE = frozenset(
    (
        # docs.aws.amazon.com/ses/latest/APIReference-V2/API_MessageHeader.html
        "Amazon SES",
        # anymail.dev/en/stable/esps/sparkpost/#limitations-and-quirks
        "SparkPost",
    )
)
_TAKE_MIME = frozenset({"Amazon SES"})
"""Providers whose backend calls ``message()``."""
_MAX_RETRY_AFTER = 24 * 3600.0
"""Seconds; a longer ``Retry-After`` is ignored."""


def is_provider(backend: BaseEmailBackend | type[BaseEmailBackend]) -> bool:
    """Return whether a backend is one of anymail's."""
    cls: Any = backend if isinstance(backend, type) else type(backend)
    return _is_of_anymail(cls)


@lru_cache
def _is_of_anymail(cls: type) -> bool:
    return any(base.__module__ == "anymail.backends.base" for base in cls.__mro__)


def rules(backend: Any, message: EmailMessage) -> Rules:
    """Return what a provider's backend reads of a message.

    Amazon's takes MIME, except for a message that the provider makes of a template.
    """
    is_mime = backend.esp_name in _TAKE_MIME and not has_template(message)
    return Rules.MIME if is_mime else Rules.FIELDS


def _makes_own_headers(backend: Any, message: EmailMessage) -> bool:
    """Return whether a provider takes no Message-ID with a message that it makes of a template."""
    return backend.esp_name in _NO_MESSAGE_ID_WITH_TEMPLATE and has_template(message)


def has_template(message: EmailMessage) -> bool:
    """Return whether the provider makes the mail of a template that it stores."""
    template = getattr(message, "template_id", None)
    return template is not None and not fields.is_unset(template)


def restrain(backend: Any) -> None:
    """Limit a backend to one request, and to the time allowed for one mail.

    requests would follow a redirect: with the mail and the key to any host, or with a GET, whose
    answer would count as that to the mail. boto3 would also retry after a time-out, when the
    provider may have accepted the mail. At DEBUG it logs each request whole, mail and all: it does
    so only if the site asks for that by name.
    """
    if (create_session := getattr(backend, "create_session", None)) is not None:

        def create() -> Any:
            session = create_session()
            session.get_redirect_target = lambda response: None
            return session

        backend.create_session = create
    seconds = conf.get().send_timeout / 2  # once to connect, once to read the answer
    timeout = getattr(backend, "timeout", None)
    if isinstance(timeout, (int, float)):
        backend.timeout = min(timeout, seconds)
    config = getattr(backend, "client_params", {}).get("config")
    if config is not None:
        boto = logging.getLogger("botocore")
        if boto.level == logging.NOTSET:
            boto.setLevel(logging.INFO)
        once = type(config)(
            retries=config.retries or {"total_max_attempts": 1},
            connect_timeout=min(config.connect_timeout, seconds),
            read_timeout=min(config.read_timeout, seconds),
        )
        backend.client_params["config"] = config.merge(once)


class WithoutFields(Exception):  # noqa: N818 - an answer, not an error
    """A message of which only the MIME is stored, for a provider that takes only fields."""


class TakenBefore(Failure):
    """An answer that shows that an earlier attempt was accepted."""


def _key_as_http_header(backend: Any, message: EmailMessage, key: str) -> None:
    backend.session.headers["Idempotency-Key"] = key  # a session sends one mail at a time


def _key_as_message_header(backend: Any, message: EmailMessage, key: str) -> None:
    message.extra_headers = {**message.extra_headers, "idempotencyKey": key}


IDEMPOTENCY_KEYS = {
    # resend.com/docs/dashboard/emails/idempotency-keys: 24 hours
    "Resend": _key_as_http_header,
    # developers.brevo.com/docs/heterogenous-versions-batch-emails: a UUID, 30 minutes
    "Brevo": _key_as_message_header,
}
"""How each provider that takes an idempotency key gets it."""


def idempotency_key(our_id: str, recipients: Sequence[str]) -> str:
    """Return the key of a mail to these recipients, a UUID that is the same on every attempt."""
    return str(uuid.uuid5(uuid.UUID(our_id), "\n".join(recipients)))


def prepare(backend: Any, message: EmailMessage) -> None:
    """Add our id and its key to a message, and drop what ``recipients()`` leaves out.

    SMTP uses ``recipients()``; anymail reads To, Cc and Bcc instead. Raises ``WithoutFields`` for
    a message that would arrive empty.
    """
    if isinstance(message, RawMessage) and rules(backend, message) is Rules.FIELDS:
        raise WithoutFields(
            "Only the MIME of this message is stored, because it built that itself in message() "
            f"for another transport, and {backend.esp_name} takes only fields."
        )
    remaining = Counter(message.recipients())
    for name in ("to", "cc", "bcc"):
        kept = []
        for address in getattr(message, name) or ():
            if remaining[address]:
                remaining[address] -= 1
                kept.append(address)
        setattr(message, name, kept)
    if vars(message).get(ADDED_MESSAGE_ID) and _makes_own_headers(backend, message):
        del message.extra_headers["Message-ID"]
    our_id = getattr(message, ID, None)
    given = getattr(message, "metadata", None)
    if our_id and backend.esp_name in _METADATA_PROVIDERS:
        known = given if isinstance(given, Mapping) else {}
        message.metadata = {**known, ID: our_id}  # type: ignore[attr-defined]
    give_key = IDEMPOTENCY_KEYS.get(backend.esp_name)
    if our_id and give_key is not None:
        give_key(backend, message, idempotency_key(our_id, message.recipients()))


def tracks(backend: Any) -> bool:
    """Return whether a provider tracks opens and clicks if a message asks for it."""
    return backend.esp_name in _TRACKING_PROVIDERS


def result(message: EmailMessage, failure: Failure | None, seconds: float) -> Result:
    """Return what a provider answered about a message and each of its recipients."""
    status = getattr(message, "anymail_status", None)
    statuses = getattr(status, "recipients", None) or {}
    code = getattr(getattr(status, "esp_response", None), "status_code", None)
    if isinstance(failure, TakenBefore):
        return Result(code=failure.code, reply="An earlier attempt was accepted.", seconds=seconds)
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
        reply=reply_text(", ".join(sorted({str(it.status) for it in statuses.values()}))),
        seconds=seconds,
        provider_id=reply_text(ids[0])[:255] if ids else "",
    )


def classify(error: Exception) -> Failure | None:
    """Return what an error of an anymail backend, or of ``prepare``, means; ``None`` for others.

    ``UNKNOWN`` if the provider may have accepted the mail: a time-out after posting, or an error of
    its server or gateway.
    """
    if isinstance(error, WithoutFields):
        return Failure(kind=Kind.MESSAGE, reply=reply_text(str(error)))
    names = {base.__name__ for base in type(error).__mro__ if base.__module__ == _EXCEPTIONS_MODULE}
    if not names:
        return None
    status = _http_status(error)
    kind, scope = _fault(error, names, status)
    taken = _TAKEN_BEFORE.get(str(getattr(error, "esp_name", "")))
    was_taken = any(f"{status} {name}" == taken for name in _error_names(error))
    return (TakenBefore if was_taken else Failure)(
        kind=kind,
        scope=scope,
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


def _fault(error: Exception, names: set[str], status: int | None) -> tuple[Kind, Scope]:
    if status is not None:
        known = PROVIDER_FAULTS.get(str(getattr(error, "esp_name", "")), {})
        for name in _error_names(error):
            if (found := known.get(f"{status} {name}") or known.get(name)) is not None:
                return found
        refused = (Kind.PERMANENT, Scope.MAIL)
        return STATUS_FAULTS.get(status, refused if 400 <= status < 500 else _MAYBE_TAKEN)
    if "AnymailConfigurationError" in names:
        return Kind.OUTAGE, Scope.CREDENTIALS
    if "AnymailRecipientsRefused" in names:
        return Kind.PERMANENT, Scope.RECIPIENT
    if "AnymailAPIError" not in names:
        # an address, a feature or a value that the provider does not support
        return Kind.MESSAGE, Scope.MAIL
    is_posted = _NOT_POSTED.isdisjoint(_error_class_names(error))
    return (Kind.UNKNOWN, Scope.MAIL) if is_posted else (Kind.OUTAGE, Scope.SERVER)


def _error_names(error: Exception) -> Iterator[str]:
    """Yield the names that a provider's answer gives to an error, in the forms that they use."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # boto3
        body: Any = response.get("Error")
    else:
        try:
            body = response.json()
        except (AttributeError, ValueError, RecursionError):
            return
    parts = [body]
    if isinstance(body, Mapping) and isinstance(body.get("errors"), list):
        parts += body["errors"]
    for part in parts:
        for key in ("Code", "code", "name", "field"):
            if isinstance(part, Mapping) and isinstance(part.get(key), str):
                yield part[key]


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
