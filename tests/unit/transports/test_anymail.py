"""What errors of anymail's backends mean."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
import requests
from anymail import exceptions as anymail
from requests.packages.urllib3.exceptions import MaxRetryError, NewConnectionError

from django_epica_mail.retry import Kind, Policy, Scope, conclude
from django_epica_mail.retry import Result as AttemptResult
from django_epica_mail.transports.anymail import PROVIDER_FAULTS, classify


def test_an_error_that_is_not_anymails_is_not_classified() -> None:
    assert classify(ConnectionError("refused")) is None


def answered(status: int, **headers: str) -> anymail.AnymailRequestsAPIError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return anymail.AnymailRequestsAPIError("no", response=response)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Kind.PERMANENT),
        (401, Kind.OUTAGE),
        (403, Kind.TRANSIENT),
        (404, Kind.PERMANENT),
        (408, Kind.UNKNOWN),
        (413, Kind.PERMANENT),
        (429, Kind.THROTTLED),
        (500, Kind.UNKNOWN),
        (502, Kind.UNKNOWN),
        (503, Kind.UNKNOWN),
        (504, Kind.UNKNOWN),
    ],
)
def test_an_http_status_determines_the_kind_of_failure(status: int, kind: Kind) -> None:
    failure = classify(answered(status))
    assert (failure.kind, failure.code) == (kind, status)


def named(provider: str, status: int, body: Any) -> Exception:
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps(body).encode()
    return anymail.AnymailRequestsAPIError("no", response=response, esp_name=provider)


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind", "scope"),
    [
        ("Resend", 403, {"name": "validation_error"}, Kind.TRANSIENT, Scope.SENDER),
        ("Resend", 422, {"name": "validation_error"}, Kind.PERMANENT, Scope.MAIL),
        ("Resend", 403, {"name": "invalid_api_key"}, Kind.OUTAGE, Scope.CREDENTIALS),
        ("Resend", 409, {"name": "concurrent_idempotent_requests"}, Kind.TRANSIENT, Scope.MAIL),
        ("Resend", 409, {"name": "invalid_idempotent_request"}, Kind.UNKNOWN, Scope.MAIL),
        ("SendGrid", 403, {"errors": [{"field": "from"}]}, Kind.TRANSIENT, Scope.SENDER),
        ("SendGrid", 403, {"errors": [{"field": None}]}, Kind.TRANSIENT, Scope.SERVER),
        ("SendGrid", 403, {"errors": "none"}, Kind.TRANSIENT, Scope.SERVER),
        ("Postmark", 403, ["no", {"name": "invalid_api_key"}], Kind.TRANSIENT, Scope.SERVER),
        ("Postmark", 401, None, Kind.OUTAGE, Scope.CREDENTIALS),
        ("Postmark", 429, {}, Kind.THROTTLED, Scope.SERVER),
        ("Postmark", 599, {}, Kind.UNKNOWN, Scope.SERVER),
    ],
)
def test_the_name_of_an_error_says_more_than_its_status(
    provider, status, body, kind, scope
) -> None:
    failure = classify(named(provider, status, body))
    assert (failure.kind, failure.scope, failure.code) == (kind, scope, status)


@pytest.mark.parametrize(("name", "fault"), PROVIDER_FAULTS["Amazon SES"].items())
def test_each_error_of_amazon_has_its_kind_and_scope(name, fault) -> None:
    error = anymail.AnymailAPIError("no", esp_name="Amazon SES")
    error.response = {"Error": {"Code": name}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    with mock.patch.object(anymail.AnymailError, "__str__", return_value=""):
        failure = classify(error)
    assert (failure.kind, failure.scope) == fault


def test_retry_after_sets_the_delay_and_uses_no_try() -> None:
    failure = classify(answered(429, **{"Retry-After": "120"}))
    policy = Policy(tries=0, max_retries=3, retry_delays=[300], on_unknown="resend", too_old=False)
    decision = conclude(AttemptResult(failure=failure), policy, [0], False)
    assert (decision.delay, decision.uses_try) == (120, False)


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1e99", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"]
)
def test_a_retry_after_that_is_not_in_seconds_is_ignored(value: str) -> None:
    assert classify(answered(429, **{"Retry-After": value})).retry_after is None


def raised_from(cause: Exception) -> Exception:
    error = anymail.AnymailRequestsAPIError("no answer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised_from(requests.ReadTimeout("time-out")), Kind.UNKNOWN),
        (raised_from(requests.ConnectionError("aborted")), Kind.UNKNOWN),
        (raised_from(requests.ConnectTimeout("time-out")), Kind.OUTAGE),
        (
            raised_from(
                requests.ConnectionError(
                    MaxRetryError(None, "/", NewConnectionError(None, "refused"))  # type: ignore[arg-type]
                )
            ),
            Kind.OUTAGE,
        ),
        (anymail.AnymailAPIError("lost"), Kind.UNKNOWN),
        (anymail.AnymailRecipientsRefused(), Kind.PERMANENT),
        (anymail.AnymailInvalidAddress("x"), Kind.MESSAGE),
        (anymail.AnymailUnsupportedFeature("x"), Kind.MESSAGE),
        (anymail.AnymailSerializationError("x"), Kind.MESSAGE),
        (anymail.AnymailConfigurationError("x"), Kind.OUTAGE),
    ],
)
def test_an_error_without_an_answer_is_unknown_if_posted(error: Any, kind: Kind) -> None:
    assert classify(error).kind is kind
