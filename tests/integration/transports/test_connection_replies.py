"""What the replies of a real server mean for a mail: the first digit decides (RFC 5321, 4.2.1)."""

from __future__ import annotations

import base64
import contextlib
import math
import smtplib
import socket
import threading
from collections.abc import Callable, Iterator

import django
import pytest
from django.core.mail import EmailMessage
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from devservers.smtp import SMTPServer
from devservers.smtp_faults import Reply, Rule, drop, refuse
from django_epica_mail import replies
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind, Result, Stage
from django_epica_mail.transports import connection as transport_connection
from django_epica_mail.transports.smtp import RecordingClient


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], object]) -> Iterator[int]:
    """Start a server that talks to one client, until that hangs up; return its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def endless() -> Iterator[int]:
    """Start a server whose greeting does not end; return its port."""

    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall((b"220-" + b"x" * 4000 + b"\r\n") * 100)

    with serving(talk) as port:
        yield port


@pytest.fixture
def boasting() -> Iterator[int]:
    """Start a server that offers AUTH in 250,000 lines of its reply to EHLO; return its port."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        connection.recv(1000)
        connection.sendall(b"250-AUTH=X\r\n" * 250_000 + b"250 OK\r\n")

    with serving(talk) as port:
        yield port


@pytest.mark.parametrize("server", ["endless", "boasting"])
def test_a_reply_that_does_not_end_is_left_before_it_fills_the_memory(
    smtp, settings, epica_mail, queue_mail, deliver, request, server
) -> None:
    port = request.getfixturevalue(server)
    options = {"host": "127.0.0.1", "port": port}
    if django.VERSION >= (6, 1):
        backend = settings.MAILERS["smtp"]["BACKEND"]
        settings.MAILERS = {**settings.MAILERS, "smtp": {"BACKEND": backend, "OPTIONS": options}}
    else:
        settings.EMAIL_PORT = port
    log = queue_mail()
    deliver()
    log.refresh_from_db()
    assert "do not end" in log.reply
    assert (log.status, log.failure_kind) == ("retrying", "outage")


def send(*to: str) -> Result:
    with transport_connection.connection("smtp") as connection:
        return connection.send(EmailMessage("S", "B", "from@example.com", list(to)))


codes = st.integers(100, 999)
stages = st.sampled_from(["connect", "ehlo", "mail", "rcpt", "data", "content", "rset"])


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stage=stages, code=codes, pipelining=st.booleans())
def test_a_mail_whose_content_was_accepted_is_never_sent_again(
    smtp: SMTPServer, stage, code: int, pipelining: bool
) -> None:
    transport_connection.close_connections()
    smtp.clear()
    smtp.forget()
    smtp.pipelining = pipelining
    smtp.inject(Rule(stage, Reply(code, "words"), times=1))
    result = send("a@example.com", "b@example.com")
    smtp.pipelining = True
    accepted = [address for message in smtp.accepted for address in message.recipients]
    assert len(accepted) == len(set(accepted)), "a recipient was sent two copies"
    if code // 100 == 2 and stage != "data":
        assert (result.failure, result.refused) == (None, {})
        assert len(smtp.accepted) == 1
    if smtp.accepted and stage == "content":
        assert result.failure is None or result.failure.kind is Kind.UNKNOWN
    if result.failure is None:
        assert len(accepted) == 2 - len(result.refused)


@pytest.mark.parametrize("stage", ["mail", "rcpt", "content"])
def test_one_copy_is_sent_and_the_row_says_so(smtp, queue_mail, deliver, travel, stage) -> None:
    smtp.inject(Rule(stage, Reply(252, "2.5.0 Will try")))
    log = queue_mail("a@example.com", "b@example.com")
    for _ in range(4):
        deliver()
        travel(minutes=6)
    log.refresh_from_db()
    assert (log.status, log.tries, len(smtp.accepted)) == ("sent", 1, 1)
    attempt = log.delivery_attempts.get()
    assert attempt.code == (252 if stage == "content" else 250)
    assert not EmailLog.objects.filter(status="retrying").exists()


@pytest.mark.parametrize("code", [199, 354, 600, 999])
def test_a_reply_to_the_content_that_is_no_verdict_leaves_the_mail_unknown(smtp, code) -> None:
    smtp.inject(Rule("content", Reply(code, "words")))
    failure = send("a@example.com").failure
    assert failure is not None
    assert failure.kind is Kind.UNKNOWN


@pytest.fixture
def login(smtp, settings) -> Iterator[SMTPServer]:
    """Provide a server that wants credentials, as the transport ``smtp``."""
    with SMTPServer(credentials={"shop-user": "pass-word"}) as server:
        options = {
            "host": "127.0.0.1",
            "port": server.port,
            "username": "shop-user",
            "password": "pass-word",
        }
        spec = {
            "smtp": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}
        }
        if django.VERSION >= (6, 1):
            settings.MAILERS = {**settings.MAILERS, **spec}
        else:
            settings.EPICA_MAIL = {**settings.EPICA_MAIL, "TRANSPORTS": spec}
        yield server
        transport_connection.close_connections()


def test_credentials_accepted_with_another_2xx_code_are_accepted(login) -> None:
    login.inject(Rule("auth", Reply(252, "2.7.0 Welcome")))
    assert send("a@example.com").failure is None
    assert len(login.accepted) == 1


@pytest.mark.parametrize("stage", ["auth", "mail", "rcpt", "content"])
def test_what_the_auth_dialogue_carried_is_not_kept(login, stage) -> None:
    encoded = base64.b64encode(b"\0shop-user\0pass-word").decode()
    words = f"5.7.8 No: {encoded} {base64.b64encode(b'pass-word').decode()} shop-user/pass-word"
    login.inject(Rule(stage, Reply(535, words)))
    failure = send("a@example.com").failure
    assert failure is not None
    assert failure.reply == "5.7.8 No: *** *** ***/***"


@pytest.mark.parametrize("stage", ["mail", "rcpt", "content"])
def test_a_code_of_challenges_elsewhere_keeps_nothing_of_the_auth_dialogue(login, stage) -> None:
    encoded = base64.b64encode(b"\0shop-user\0pass-word").decode()
    login.inject(Rule(stage, Reply(334, encoded)))
    failure = send("a@example.com").failure
    assert failure is not None
    assert "***" in failure.reply
    assert encoded not in failure.reply


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"LOGIN"])
def test_challenges_that_do_not_end_do_not_tell_the_password(mechanism) -> None:
    """They repeat the client's last answer; smtplib's error would quote it."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        for line in connection.makefile("rb"):
            is_greeting = line.startswith(b"ehlo")
            offer = b"250-ready\r\n250 AUTH " + mechanism
            connection.sendall((offer if is_greeting else b"334 " + line.split()[-1]) + b"\r\n")

    with serving(talk) as port:
        client = RecordingClient("127.0.0.1", port, deadline=math.inf, timeout=10)
        with contextlib.closing(client), pytest.raises(smtplib.SMTPException) as caught:
            client.login("shop-user", "pass-word")
    failure = replies.classify(caught.value, Stage.CONNECT)
    assert (failure.kind, "do not end" in failure.reply) == (Kind.OUTAGE, True)
    assert base64.b64encode(b"pass-word").decode()[2:10] not in failure.reply


def test_a_reply_is_cleaned_before_it_is_stored(smtp, queue_mail, deliver) -> None:
    smtp.inject(
        Rule("rcpt", Reply(550, "5.1.1 \x1b[31mGone\u202e"), lambda it: "a@" in it.recipient)
    )
    smtp.inject(Rule("content", Reply(250, "2.0.0 Ok\x1b]0;x\x07\x9b")))
    log = queue_mail("a@example.com", "b@example.com")
    deliver()
    assert log.recipients.get(position=0).reply == "5.1.1 Gone"
    assert log.delivery_attempts.get().reply == "2.0.0 Ok"


EVERYONE = [f"{letter}@example.com" for letter in "abcde"]


def limit(most: int, code: int, text: str) -> Rule:
    """Refuse each recipient after the first ``most`` of a transaction."""
    return Rule("rcpt", Reply(code, text), lambda session: len(session.recipients) >= most)


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (552, "5.5.3 Too many recipients"),
        (552, "Too many recipients"),
        (452, "4.5.3 Too many recipients"),
        (452, "Later"),
        (550, "5.5.3 Enough"),
        (552, "5.2.2 Quota"),
    ],
)
def test_recipients_beyond_a_limit_are_asked_in_a_fresh_transaction(
    smtp, queue_mail, deliver, most: int, code: int, text: str
) -> None:
    smtp.inject(limit(most, code, text))
    log = queue_mail(*EVERYONE)
    assert deliver() == 1
    log.refresh_from_db()
    assert (log.status, log.tries, log.attempts) == ("sent", 1, 1)
    assert sorted(a for message in smtp.accepted for a in message.recipients) == EVERYONE
    assert len({message.message_id for message in smtp.accepted}) == 1
    assert len(smtp.accepted) == -(-5 // most)


@pytest.mark.parametrize(("code", "kind"), [(552, Kind.PERMANENT), (452, Kind.TRANSIENT)])
def test_the_same_answer_in_a_fresh_transaction_is_the_verdict(smtp, code, kind) -> None:
    smtp.inject(
        Rule("rcpt", Reply(code, "Full"), lambda it: it.recipient in ("b@example.com", EVERYONE[3]))
    )
    result = send(*EVERYONE)
    assert result.failure is None
    assert {position: it.kind for position, it in result.refused.items()} == {1: kind, 3: kind}
    (message,) = smtp.accepted
    assert message.recipients == ("a@example.com", "c@example.com", "e@example.com")
    assert smtp.commands["RCPT"] == 7


@pytest.mark.parametrize(
    ("action", "kind", "on_unknown", "status"),
    [
        (drop("content", accepted=True), "unknown", "hold", "unknown"),
        (drop("content", accepted=True), "", "fail", "sent"),
        (refuse("content", 451, "4.3.0 Later"), "transient", "resend", "retrying"),
    ],
)
def test_a_failure_of_the_second_transaction_concerns_its_recipients_only(
    smtp, queue_mail, deliver, action, kind, on_unknown, status
) -> None:
    smtp.inject(limit(3, 552, "5.5.3 Enough"))
    smtp.inject(Rule("content", action.action, lambda it: it.accepted == 1))
    log = queue_mail(*EVERYONE, on_unknown=on_unknown)
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == (status, kind)
    outcomes = list(log.recipients.order_by("position").values_list("outcome", flat=True))
    assert outcomes == (
        ["", "", "", "refused", "refused"] if status == "sent" else ["accepted"] * 3 + ["", ""]
    )


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    most=st.integers(1, 6),
    full=st.sets(st.sampled_from(EVERYONE)),
    code=st.sampled_from([452, 552, 550]),
)
def test_whatever_the_limit_each_recipient_gets_one_copy_or_a_verdict(
    smtp: SMTPServer, most: int, full: set[str], code: int
) -> None:
    smtp.clear()
    smtp.forget()
    smtp.inject(Rule("rcpt", Reply(code, "5.2.2"), lambda session: session.recipient in full))
    smtp.inject(limit(most, 552, "5.5.3 Too many"))
    result = send(*EVERYONE)
    copies = [address for message in smtp.accepted for address in message.recipients]
    assert sorted(copies) == [address for address in EVERYONE if address not in full]
    if len(full) < len(EVERYONE):
        assert {EVERYONE[position] for position in result.refused} == full
