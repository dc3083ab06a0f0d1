"""The envelope is sent in one write (RFC 2920), and smtplib interprets the replies."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from devservers.smtp import SMTPServer
from devservers.smtp_faults import refuse
from django_epica_mail.retry import Stage
from django_epica_mail.transports.smtp import RecordingBackend, RecordingClient
from tests.unit.transports.test_smtp import backend_for, message


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record each write of the client."""
    recorded: list[bytes] = []
    real = smtplib.SMTP.send

    def send(self: smtplib.SMTP, data: object) -> None:
        recorded.append(bytes(data))  # type: ignore[call-overload]
        real(self, data)  # type: ignore[arg-type]

    monkeypatch.setattr(smtplib.SMTP, "send", send)
    return recorded


def connect(port: int) -> tuple[RecordingBackend, RecordingClient]:
    backend = backend_for(port)
    backend.begin(time.monotonic() + 5)
    assert backend.connection is not None
    return backend, backend.connection


def send(backend: RecordingBackend, *to: str) -> None:
    backend.begin(time.monotonic() + 5)
    backend.send_messages([message("Body", *to)])


@pytest.mark.parametrize(("offered", "number"), [(True, 2), (False, 5)])
def test_the_envelope_is_one_write_if_the_server_offers_it(
    writes: list[bytes], offered: bool, number: int
) -> None:
    with SMTPServer(pipelining=offered) as server:
        backend, client = connect(server.port)
        writes.clear()
        send(backend, "a@example.com", "b@example.com")
        assert len(writes) == number
        assert b"".join(writes[:-1]).lower().split(b"\r\n")[1:] == [
            *(b"rcpt to:<a@example.com>", b"rcpt to:<b@example.com>", b"data", b""),
        ]
        assert client.stage is Stage.ANSWERED
        assert [code for code, _ in client.recipient_replies] == [250, 250]
        assert server.accepted[0].recipients == ("a@example.com", "b@example.com")
        backend.close()


def test_more_than_100_recipients_are_not_pipelined(writes: list[bytes]) -> None:
    with SMTPServer() as server:
        backend, _ = connect(server.port)
        writes.clear()
        send(backend, *(f"to{number}@example.com" for number in range(101)))
        assert len(writes) == 104
        assert len(server.accepted[0].recipients) == 101
        backend.close()


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("mail", smtplib.SMTPSenderRefused),
        ("rcpt", smtplib.SMTPRecipientsRefused),
    ],
)
def test_after_a_refusal_the_connection_sends_the_next_mail(
    stage: str, error: type[smtplib.SMTPException]
) -> None:
    with SMTPServer() as server:
        server.inject(refuse(stage, 451, "4.3.0 Later", times=1))  # type: ignore[arg-type]
        backend, client = connect(server.port)
        with pytest.raises(error):
            send(backend, "a@example.com")
        assert client.stage is Stage.ENVELOPE
        send(backend, "b@example.com")
        assert [mail.recipients for mail in server.accepted] == [("b@example.com",)]
        assert server.connections.opened == 1
        backend.close()


def test_only_accepted_recipients_get_the_mail() -> None:
    with SMTPServer() as server:
        server.inject(refuse("rcpt", 550, "5.1.1 Gone", recipient=lambda a: a.startswith("no")))
        backend, client = connect(server.port)
        send(backend, "no@example.com", "yes@example.com")
        assert [code for code, _ in client.recipient_replies] == [550, 250]
        assert server.accepted[0].recipients == ("yes@example.com",)
        backend.close()


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
def test_no_reply_is_awaited_after_a_421(stage: str) -> None:
    with SMTPServer() as server:
        server.inject(refuse(stage, 421, "4.3.2 Shutting down"))  # type: ignore[arg-type]
        backend, client = connect(server.port)
        with pytest.raises(smtplib.SMTPResponseException if stage != "rcpt" else OSError):
            send(backend, "a@example.com", "b@example.com")
        assert client.stage is Stage.ENVELOPE
        assert server.accepted == []
        backend.close()


@contextmanager
def script(
    replies: Sequence[bytes], *, hangs_up: bool = False
) -> Iterator[tuple[int, list[bytes]]]:
    """Serve one connection: answer each write with the next reply, and record the writes.

    After the last reply it closes the connection, or keeps reading without answering.
    """
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 odd ESMTP\r\n")
                for reply in (b"250-odd\r\n250 PIPELINING\r\n", *replies):
                    received.append(connection.recv(65536))
                    connection.sendall(reply)
                while not hangs_up and (data := connection.recv(65536)):
                    received.append(data)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield listener.getsockname()[1], received
        finally:
            thread.join(timeout=10)


@pytest.mark.parametrize(
    "replies",
    [b"550 No sender\r\n250 Ok\r\n354 Go\r\n", b"250 Ok\r\n550 Gone\r\n354 Go\r\n"],
    ids=["sender refused", "every recipient refused"],
)
def test_an_abandoned_envelope_never_becomes_an_empty_mail(replies: bytes) -> None:
    with script([replies]) as (port, received):
        backend, client = connect(port)
        with pytest.raises((smtplib.SMTPSenderRefused, smtplib.SMTPRecipientsRefused)):
            send(backend, "a@example.com")
        assert client.sock is None
        assert client.stage is Stage.ENVELOPE
        backend.close()
    assert len(received) == 2  # the greeting and the envelope: no content and no final dot


def test_a_refusal_before_a_disconnect_is_the_answer() -> None:
    with script([b"250 Ok\r\n550 5.7.1 Blocked\r\n"], hangs_up=True) as (port, _):
        backend, _ = connect(port)
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            send(backend, "a@example.com")
        assert refused.value.recipients == {"a@example.com": (550, b"5.7.1 Blocked")}
        backend.close()


def test_recipients_of_an_earlier_mail_are_not_reused() -> None:
    with SMTPServer() as server:
        backend, client = connect(server.port)
        client.sendmail("s@example.com", ["a@example.com"], b"One\r\n")
        options = ["NOTIFY=NEVER"]
        client.sendmail("s@example.com", ["b@example.com"], b"Two\r\n", rcpt_options=options)
        client.sendmail("s@example.com", "c@example.com", b"Three\r\n")
        assert [mail.recipients for mail in server.accepted] == [
            *(("a@example.com",), ("b@example.com",), ("c@example.com",))
        ]
        backend.close()


def test_an_invalid_address_leaves_the_connection_usable() -> None:
    with SMTPServer() as server:
        backend, client = connect(server.port)
        with pytest.raises(ValueError, match="newline"):
            client.sendmail("s@example.com", ['"a\nb"@example.com'], b"One\r\n")
        client.sendmail("s@example.com", ["b@example.com"], b"Two\r\n")
        assert [mail.recipients for mail in server.accepted] == [("b@example.com",)]
        backend.close()
