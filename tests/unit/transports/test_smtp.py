"""The SMTP layer records how far a dialogue came, and ends it in time."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
from collections.abc import Iterator

import django
import pytest
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend

from devservers.smtp import SMTPServer
from devservers.smtp_faults import Rule, delay, drop, hang, refuse
from django_epica_mail.retry import Stage
from django_epica_mail.transports.smtp import RecordingBackend, recording_backend


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        yield server


def backend_for(port: int, timeout: float | None = None) -> RecordingBackend:
    alias = "smtp" if django.VERSION >= (6, 1) else None
    backend_class = recording_backend(EmailBackend)
    return backend_class(host="127.0.0.1", port=port, timeout=timeout, alias=alias)


def message(body: str = "Body", *to: str) -> EmailMessage:
    return EmailMessage("Subject", body, "from@example.com", list(to) or ["to@example.com"])


def stage_after(backend: RecordingBackend, mail: EmailMessage, seconds: float = 5) -> Stage:
    try:
        backend.begin(time.monotonic() + seconds)
        backend.send_messages([mail])
    except OSError:
        pass
    stage = backend.connection.stage if backend.connection else Stage.CONNECT
    backend.close()
    return stage


@pytest.mark.parametrize(
    ("rule", "stage"),
    [
        (drop("connect"), Stage.CONNECT),
        (refuse("connect", 554, "No"), Stage.CONNECT),
        (drop("ehlo"), Stage.CONNECT),
        (refuse("mail", 451, "Later"), Stage.ENVELOPE),
        (refuse("rcpt", 550, "Gone"), Stage.ENVELOPE),
        (refuse("data", 451, "Later"), Stage.ENVELOPE),
        (drop("data"), Stage.ENVELOPE),
        (drop("content"), Stage.CONTENT),
        (drop("content", accepted=True), Stage.CONTENT),
        (refuse("content", 554, "Spam"), Stage.ANSWERED),
    ],
)
def test_the_stage_reached_is_recorded(server: SMTPServer, rule: Rule, stage: Stage) -> None:
    server.inject(Rule(rule.stage, rule.action))
    assert stage_after(backend_for(server.port), message()) is stage


def test_success_ends_in_the_stage_answered(server: SMTPServer) -> None:
    assert stage_after(backend_for(server.port), message()) is Stage.ANSWERED
    assert len(server.accepted) == 1


def test_a_command_after_a_refused_data_is_not_content(server: SMTPServer) -> None:
    server.inject(refuse("data", 451, "4.3.0 Later", times=1))
    backend = backend_for(server.port)
    backend.begin(time.monotonic() + 5)
    connection = backend.connection
    assert connection is not None
    with pytest.raises(smtplib.SMTPDataError):
        backend.send_messages([message()])
    assert connection.rset()[0] == 250
    assert connection.stage is Stage.ENVELOPE
    assert connection.content_reply is None
    backend.close()
    assert server.accepted == []


def test_a_connection_cut_within_the_content_cannot_be_accepted(server: SMTPServer) -> None:
    server.inject(drop("body", reset=True))
    body = ("x" * 70 + "\n") * 600_000  # 42 MB: more than both sockets' buffers hold
    assert stage_after(backend_for(server.port), message(body)) is Stage.ENVELOPE
    assert server.accepted == []


def test_large_content_arrives_complete(server: SMTPServer) -> None:
    body = "".join(f"line {number}\n.\n" for number in range(20_000))
    assert stage_after(backend_for(server.port), message(body)) is Stage.ANSWERED
    assert server.accepted[0].content.count(b"\r\n.\r\n") >= 10_000


def test_replies_are_recorded_by_recipient_position(server: SMTPServer) -> None:
    server.inject(refuse("rcpt", 550, "5.1.1 Gone", recipient=lambda a: a.startswith("no")))
    backend = backend_for(server.port)
    backend.begin(time.monotonic() + 5)
    backend.send_messages([message("Body", "a@example.com", "no@example.com", "c@example.com")])
    assert backend.connection is not None
    assert [code for code, _ in backend.connection.recipient_replies] == [250, 550, 250]
    backend.close()


@pytest.mark.parametrize("stage", ["connect", "mail", "content"])
def test_a_silent_server_is_abandoned_at_the_deadline(server: SMTPServer, stage) -> None:
    server.inject(hang(stage))
    started = time.monotonic()
    stage_after(backend_for(server.port), message(), seconds=0.5)
    assert time.monotonic() - started < 2


def test_the_sites_own_timeout_applies_if_it_is_shorter(server: SMTPServer) -> None:
    server.inject(hang("content"))
    backend = backend_for(server.port, timeout=0.2)
    started = time.monotonic()
    assert stage_after(backend, message(), seconds=30) is Stage.CONTENT
    assert time.monotonic() - started < 2


def test_the_sites_own_timeout_applies_per_reply(server: SMTPServer) -> None:
    server.inject(delay(0.15))  # before each of the replies, together longer than the timeout
    backend = backend_for(server.port, timeout=0.5)
    started = time.monotonic()
    assert stage_after(backend, message(), seconds=30) is Stage.ANSWERED
    assert time.monotonic() - started > 0.5


def test_a_mail_past_its_deadline_is_not_started(server: SMTPServer) -> None:
    backend = backend_for(server.port)
    backend.begin(time.monotonic() + 5)
    assert backend.connection is not None
    backend.connection.begin(time.monotonic() - 1)
    with pytest.raises(smtplib.SMTPServerDisconnected, match="SEND_TIMEOUT"):
        backend.send_messages([message()])
    assert backend.connection.stage is Stage.ENVELOPE
    assert backend.connection.sock is None
    backend.close()
    assert server.accepted == []


def test_a_server_sending_byte_by_byte_cannot_pass_the_deadline() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    stopped = threading.Event()

    def send_byte_by_byte() -> None:
        connection, _ = listener.accept()
        with connection:
            while not stopped.wait(0.05):
                try:
                    connection.sendall(b"2")
                except OSError:
                    return

    thread = threading.Thread(target=send_byte_by_byte)
    thread.start()
    started = time.monotonic()
    try:
        stage = stage_after(backend_for(listener.getsockname()[1]), message(), seconds=0.5)
        assert stage is Stage.CONNECT
        assert time.monotonic() - started < 2
    finally:
        stopped.set()
        thread.join()
        listener.close()


def test_each_mail_starts_a_new_record(server: SMTPServer) -> None:
    backend = backend_for(server.port)
    for _ in range(2):
        backend.begin(time.monotonic() + 5)
        backend.send_messages([message()])
        assert backend.connection is not None
        assert len(backend.connection.recipient_replies) == 1
    assert server.connections.opened == 1
    backend.close()
