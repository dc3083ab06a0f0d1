"""What errors of anymail's backends mean."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from anymail import exceptions as anymail
from requests.packages.urllib3.exceptions import MaxRetryError, NewConnectionError

from django_epica_mail.retry import Kind, Policy, conclude
from django_epica_mail.retry import Result as AttemptResult
from django_epica_mail.transports.anymail import classify


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
        (403, Kind.OUTAGE),
        (404, Kind.PERMANENT),
        (408, Kind.UNKNOWN),
        (413, Kind.PERMANENT),
        (429, Kind.THROTTLED),
        (500, Kind.TRANSIENT),
        (502, Kind.UNKNOWN),
        (503, Kind.TRANSIENT),
        (504, Kind.UNKNOWN),
    ],
)
def test_an_http_status_determines_the_kind_of_failure(status: int, kind: Kind) -> None:
    failure = classify(answered(status))
    assert (failure.kind, failure.code) == (kind, status)


def test_retry_after_sets_the_delay_and_uses_no_try() -> None:
    failure = classify(answered(429, **{"Retry-After": "120"}))
    policy = Policy(tries=0, max_retries=3, retry_delay=300, on_unknown="resend", too_old=False)
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
