"""HTTP providers: mail from the queue through anymail's backends to a server of their APIs."""

from __future__ import annotations

import base64
import contextlib
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import django
import pytest
from anymail.message import AnymailMessage, AnymailRecipientStatus
from django.core.mail import EmailMessage

from devservers.http_service import HTTPService
from devservers.provider import KEY, Provider
from django_epica_mail import conf, outbox, suppression
from django_epica_mail.delivery import gates
from django_epica_mail.exceptions import TokenRefused
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.retry import Kind
from django_epica_mail.transports import anymail, connection
from django_epica_mail.transports import config as transports
from django_epica_mail.transports.oauth import Mailbox, TokenSource

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support for SendGrid"),
]
APIS = ("sendgrid", "amazon")


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(
    server: Provider, settings: Any, epica_mail: Callable[..., None]
) -> Iterator[Provider]:
    """Configure the transports ``sendgrid`` and ``amazon`` to use the server, and ``test`` none."""
    specs: dict[str, Any] = {
        "sendgrid": {
            "BACKEND": "anymail.backends.sendgrid.EmailBackend",
            "OPTIONS": {"api_key": KEY, "api_url": server.sendgrid_url},
        },
        "amazon": {
            "BACKEND": "anymail.backends.amazon_ses.EmailBackend",
            "OPTIONS": {
                "client_params": {
                    "endpoint_url": server.amazon_url,
                    "region_name": "eu-west-1",
                    "aws_access_key_id": "id",
                    "aws_secret_access_key": "secret",
                }
            },
        },
        "resend": {
            "BACKEND": "anymail.backends.resend.EmailBackend",
            "OPTIONS": {"api_key": KEY, "api_url": server.resend_url},
        },
        "brevo": {
            "BACKEND": "anymail.backends.brevo.EmailBackend",
            "OPTIONS": {"api_key": KEY, "api_url": server.brevo_url},
        },
        "test": {"BACKEND": "anymail.backends.test.EmailBackend"},
    }
    if django.VERSION >= (6, 1):
        settings.MAILERS = specs
    else:
        epica_mail(TRANSPORTS=specs)
    epica_mail(DEFAULT_TRANSPORT="sendgrid", REAL_TRANSPORTS_IN_TESTS=True)
    yield server
    connection.close_connections()
    server.forget()


@pytest.fixture
def drip() -> Iterator[str]:
    """Yield the URL of a server whose answers do not end: each byte comes after 0.2 s."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connected: socket.socket) -> None:
        with connected, contextlib.suppress(OSError):
            connected.recv(1 << 16)
            connected.sendall(b"HTTP/1.")
            while True:
                connected.sendall(b"x")
                time.sleep(0.2)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=[listener.accept()[0]], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that has a page for every request, and the requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.requestline)
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with HTTPService(Handler) as service:
        yield f"http://127.0.0.1:{service.port}/", requests


@pytest.fixture(params=APIS)
def api(request: Any) -> str:
    return str(request.param)


def queue(api: str, *to: str, **options: Any) -> EmailLog:
    message = EmailMessage("S", "B", "shop@example.com", list(to) or ["to@example.com"])
    return outbox.enqueue(message, transport=api, **options)


def test_a_provider_that_drips_its_answer_is_left_in_time(
    provider, drip, settings, epica_mail
) -> None:
    options = {"api_key": KEY, "api_url": drip}
    specs = {"slow": {"BACKEND": "anymail.backends.sendgrid.EmailBackend", "OPTIONS": options}}
    if django.VERSION >= (6, 1):
        settings.MAILERS = specs
    else:
        epica_mail(TRANSPORTS=specs)
    epica_mail(DEFAULT_TRANSPORT="slow", REAL_TRANSPORTS_IN_TESTS=True, SEND_TIMEOUT=1)
    began = time.monotonic()
    with connection.connection("slow") as lent:
        for _ in range(2):
            result = lent.send(EmailMessage("S", "B", "shop@example.com", ["to@example.com"]))
            assert result.failure is not None
            assert result.failure.kind is Kind.UNKNOWN
    assert time.monotonic() - began < 4


def test_an_authority_that_drips_its_answer_is_left_in_time(drip) -> None:
    form = {"provider": "generic", "token_url": drip, "client_id": "x", "client_secret": "y"}
    source = TokenSource(form, Mailbox("shop@example.com", "smtp.example.com", 587))
    began = time.monotonic()
    with pytest.raises(TokenRefused):
        source.current(1.0)
    assert time.monotonic() - began < 3


def state(log: EmailLog) -> tuple[str, str, int]:
    log.refresh_from_db()
    return log.status, log.failure_kind, log.tries


def test_our_id_is_sent_and_the_providers_id_is_stored(provider, deliver, api) -> None:
    log = queue(api)
    assert deliver() == 1
    assert state(log) == ("sent", "", 1)
    (taken,) = provider.taken
    assert (taken.api, taken.recipients) == (api, ("to@example.com",))
    assert taken.metadata["epica_mail_id"] == str(log.pk)
    attempt = DeliveryAttempt.objects.get()
    known = taken.metadata["anymail_id"] if api == "sendgrid" else taken.id
    assert (attempt.provider_id, attempt.reply) == (known, "queued")


def test_no_library_logs_a_mail_at_debug(provider, deliver, api, caplog) -> None:
    secret = "https://example.com/reset/MjA-secret"
    message = EmailMessage("S", secret * 9, "shop@example.com", ["ann@example.com"])
    outbox.enqueue(message, transport=api)
    with caplog.at_level(logging.DEBUG):
        assert deliver() == 1
    (taken,) = provider.taken
    assert taken.recipients == ("ann@example.com",)
    assert "ann@example.com" not in caplog.text
    assert secret not in caplog.text
    # in Base64, whatever comes before it
    coded = {base64.b64encode(secret[at:].encode())[:24].decode() for at in range(3)}
    assert not [it for it in coded if it in caplog.text]


def test_the_callers_tags_and_metadata_are_sent(provider, deliver, api) -> None:
    message = AnymailMessage(
        "S", "B", "shop@example.com", ["to@example.com"], tags=["news"], metadata={"order": "7"}
    )
    log = outbox.enqueue(message, transport=api)
    deliver()
    metadata = dict(provider.taken[0].metadata)
    metadata.pop("anymail_id", None)
    assert metadata == {"order": "7", "epica_mail_id": str(log.pk)}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_neither_counts_as_sent_nor_takes_the_mail_elsewhere(
    provider, deliver, elsewhere, status
) -> None:
    url, requests = elsewhere
    provider.fail(status, headers={"Location": url})
    log = queue("sendgrid", on_unknown="hold")
    deliver()
    assert state(log) == ("unknown", "unknown", 1)
    assert DeliveryAttempt.objects.get().code == status
    assert requests == []


def test_a_throttled_mail_waits_and_uses_no_try(provider, deliver, api, travel) -> None:
    provider.fail(429, error="TooManyRequestsException", headers={"Retry-After": "120"})
    log = queue(api)
    deliver()
    assert state(log) == ("retrying", "throttled", 0)
    travel(seconds=110)
    assert deliver() == 0
    # 120 seconds, and the tenth that jitter may add.
    travel(seconds=25)
    assert deliver() == 1
    assert state(log) == ("sent", "", 1)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, "BadRequestException", ("failed", "permanent", 0)),
        (400, "MessageRejected", ("failed", "permanent", 0)),
        (401, "", ("retrying", "outage", 0)),
        (403, "AccessDeniedException", ("retrying", "transient", 1)),
        (500, "InternalServiceErrorException", ("retrying", "unknown", 1)),
        (503, "", ("retrying", "unknown", 1)),
        (504, "", ("retrying", "unknown", 1)),
    ],
)
def test_an_error_of_the_provider_determines_the_status(
    provider, deliver, api, status, error, expected
) -> None:
    provider.fail(status, error=error)
    log = queue(api, on_unknown="resend")
    deliver()
    assert state(log) == expected
    assert provider.requests == 1, "posted more than once"
    assert DeliveryAttempt.objects.get().code == status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("LimitExceededException", "throttled"),
        ("ThrottlingException", "throttled"),
        ("SendingPausedException", "outage"),
    ],
)
def test_an_amazon_400_is_classified_by_its_error_name(provider, deliver, error, kind) -> None:
    provider.fail(400, error=error)
    log = queue("amazon")
    deliver()
    assert state(log) == ("retrying", kind, 0)


def test_a_lost_answer_of_the_provider_is_unknown(provider, deliver, api, epica_mail) -> None:
    epica_mail(SEND_TIMEOUT=1)
    provider.lose_answer(times=3)
    log = queue(api, on_unknown="hold")
    deliver()
    assert state(log) == ("unknown", "unknown", 1)
    assert len(provider.taken) == provider.requests == 1, "posted more than once"


def test_an_unreachable_provider_is_an_outage(provider, deliver, api, settings) -> None:
    nowhere = {"sendgrid": "api_url", "amazon": "client_params"}[api]
    specs = transports.specs()
    value: Any = "http://127.0.0.1:1/v3/"
    if api == "amazon":
        value = {**specs[api]["OPTIONS"]["client_params"], "endpoint_url": "http://127.0.0.1:1"}
    specs[api]["OPTIONS"][nowhere] = value
    log = queue(api, on_unknown="hold")
    deliver()
    assert state(log) == ("retrying", "outage", 0)
    assert gates.Gates("default").out_of_order() == [api]


def test_suppressed_recipients_are_not_sent_to_the_provider(provider, deliver, api) -> None:
    suppression.add("gone@example.com")
    message = EmailMessage(
        "S", "B", "shop@example.com", ["a@example.com", "gone@example.com"],
        cc=["b@example.com"], bcc=["Gone <gone@example.com>", "c@example.com"],
    )  # fmt: skip
    log = outbox.enqueue(message, transport=api)
    deliver()
    assert state(log)[0] == "sent"
    assert provider.taken[0].recipients == ("a@example.com", "b@example.com", "c@example.com")


def answer(**statuses: str) -> Callable[..., dict[str, Any]]:
    def post(self: Any, payload: Any, message: Any) -> dict[str, Any]:
        given = {address.split("@")[0]: address for address in payload.recipient_emails}
        return {
            "recipient_status": {
                given[name]: AnymailRecipientStatus(message_id=f"id-{name}", status=status)
                for name, status in statuses.items()
                if name in given
            }
        }

    return post


def test_the_providers_status_of_each_recipient_is_stored(
    provider, deliver, monkeypatch, travel
) -> None:
    monkeypatch.setattr(
        "anymail.backends.test.EmailBackend.post_to_esp",
        answer(a="sent", b="rejected", c="failed", d="queued"),
    )
    log = queue("test", *(f"{name}@example.com" for name in "abcd"))
    deliver()
    assert state(log) == ("retrying", "transient", 1)
    assert list(log.recipients.values_list("outcome", flat=True)) == [
        *("accepted", "refused", "", "accepted")
    ]
    monkeypatch.setattr("anymail.backends.test.EmailBackend.post_to_esp", answer(c="sent"))
    travel(minutes=6)
    deliver()
    assert state(log) == ("sent", "", 2)
    assert list(DeliveryAttempt.objects.values_list("provider_id", flat=True)) == ["id-a", "id-c"]


def test_a_mail_refused_for_all_recipients_fails(provider, deliver, monkeypatch) -> None:
    monkeypatch.setattr(
        "anymail.backends.test.EmailBackend.post_to_esp", answer(a="rejected", b="invalid")
    )
    log = queue("test", "a@example.com", "b@example.com")
    deliver()
    assert state(log) == ("failed", "permanent", 0)


def test_a_mail_cancelled_in_pre_send_is_not_sent(provider, deliver) -> None:
    from anymail.exceptions import AnymailCancelSend
    from anymail.signals import pre_send

    def stop(sender: Any, **_: Any) -> None:
        raise AnymailCancelSend

    pre_send.connect(stop)
    try:
        log = queue("test")
        deliver()
    finally:
        pre_send.disconnect(stop)
    assert state(log) == ("failed", "message", 0)
    assert "cancelled before it reached the provider" in log.reply


def test_the_sites_own_boto3_retries_are_kept(provider) -> None:
    backend: Any = connection.build("amazon")
    assert backend.client_params["config"].retries["total_max_attempts"] == 1
    params = transports.specs()["amazon"]["OPTIONS"]["client_params"]
    params["config"] = {"retries": {"total_max_attempts": 4, "mode": "standard"}}
    backend = connection.build("amazon")
    assert backend.client_params["config"].retries["total_max_attempts"] == 4


@pytest.mark.parametrize("status", [500, 503])
def test_an_outage_leaves_few_mails_unknown(provider, deliver, api, status) -> None:
    provider.fail(status, times=60)
    for number in range(60):
        message = EmailMessage("S", "B", "shop@example.com", [f"to{number}@example.com"])
        outbox.enqueue(message, transport=api, on_unknown="hold")
    deliver()
    assert gates.Gates("default").out_of_order() == [api]
    unknown = EmailLog.objects.filter(status="unknown").count()
    assert 0 < unknown <= conf.PERMITS
    assert EmailLog.objects.filter(status="queued").count() == 60 - unknown


def test_one_senders_403_delays_nobody(provider, deliver, api) -> None:
    provider.fail(403, error="AccessDeniedException")
    bad = queue(api)
    good = [queue(api) for _ in range(5)]
    deliver()
    assert state(bad) == ("retrying", "transient", 1)
    assert {state(log) for log in good} == {("sent", "", 1)}
    assert gates.Gates("default").out_of_order() == []


@pytest.mark.parametrize("api", ["resend", "brevo"])
@pytest.mark.parametrize("answer_lost", [True, False])
def test_a_resend_after_unknown_does_not_double_where_the_provider_takes_a_key(
    provider, deliver, travel, epica_mail, api, answer_lost
) -> None:
    epica_mail(SEND_TIMEOUT=1)
    if answer_lost:
        provider.lose_answer()
    else:
        provider.fail(503)
    log = queue(api, on_unknown="resend")
    deliver()
    assert state(log) == ("retrying", "unknown", 1)
    travel(minutes=6)
    deliver()
    assert state(log) == ("sent", "", 2)
    assert provider.requests == 2
    (taken,) = provider.taken
    assert taken.recipients == ("to@example.com",)


@pytest.mark.parametrize("api", ["resend", "brevo"])
def test_each_mail_has_a_key_of_its_own(provider, deliver, api) -> None:
    for _ in range(3):
        queue(api)
    deliver()
    assert len(provider.taken) == len(provider.keys) == 3
    assert {uuid.UUID(key).version for key in provider.keys} == {5}


def test_the_key_depends_on_the_row_and_the_recipients_only() -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    key = anymail.idempotency_key(one, ["a@example.com"])
    assert key == anymail.idempotency_key(one, ["a@example.com"])
    assert key != anymail.idempotency_key(one, ["b@example.com"])
    assert key != anymail.idempotency_key(other, ["a@example.com"])
