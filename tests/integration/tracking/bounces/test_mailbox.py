"""Reading the mailbox: by IMAP from a real server, and a Maildir."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, OperationalError

from devservers.authority import TokenAuthority
from devservers.imap import IMAPServer
from django_epica_mail import suppression
from django_epica_mail.exceptions import MailboxError
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.tasks import read_bounces
from django_epica_mail.tracking.bounces import incoming, verp
from django_epica_mail.tracking.bounces import mailbox as bounce_mailbox
from tests.returned import returned

pytestmark = pytest.mark.django_db
GONE = "gone@example.net"
PATTERN = "bounces+{id}@shop.example.com"
SEEN, DELETED = r"\Seen", r"\Deleted"
OFFER = b"Subject: offer\r\n\r\nBuy!\r\n"


@pytest.fixture
def imap() -> Iterator[IMAPServer]:
    with IMAPServer() as server:
        yield server


@pytest.fixture
def mailbox(imap: IMAPServer, epica_mail: Any) -> IMAPServer:
    """Make the server's mailbox the site's."""
    epica_mail(BOUNCE_MAILBOX=uri(imap))
    return imap


@pytest.fixture
def maildir(tmp_path: Path, epica_mail: Any) -> Path:
    """Make a Maildir the site's."""
    path = tmp_path / "bounces here"
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True)
    epica_mail(BOUNCE_MAILBOX=f"maildir:{path}")
    return path


@pytest.fixture
def sent(queue_mail: Any, smtp: Any, deliver: Any) -> EmailLog:
    log = queue_mail(GONE)
    deliver()
    return log


def uri(server: IMAPServer, **parts: Any) -> dict[str, Any]:
    given = parts or {"PASSWORD": server.password}
    return {"URI": f"imap://{server.user}@127.0.0.1:{server.port}", **given}


def report_about(log: EmailLog, name: str = "postfix") -> bytes:
    return returned(name, to=verp.address(PATTERN, log.pk))


def flags(server: IMAPServer) -> list[set[str]]:
    return [message.flags for message in server.messages]


def counts(**given: int) -> dict[str, int]:
    return {"recorded": 0, "known": 0, "unmatched": 0, "unrecognised": 0, **given}


# -- IMAP


def test_reports_are_recorded_once_and_marked_as_read(mailbox, sent) -> None:
    mailbox.deliver(report_about(sent))
    mailbox.deliver(report_about(sent))
    mailbox.deliver(returned("exim"))
    mailbox.deliver(OFFER)
    assert bounce_mailbox.read() == counts(recorded=1, known=1, unmatched=1, unrecognised=1)
    assert suppression.is_suppressed(GONE)
    assert flags(mailbox) == [{SEEN}] * 4
    assert bounce_mailbox.read() == counts()
    assert mailbox.commands[-1] == "LOGOUT"


def test_only_what_was_recorded_is_deleted(mailbox, sent, epica_mail) -> None:
    epica_mail(DELETE_BOUNCES=True)
    mailbox.deliver(OFFER)
    mailbox.deliver(report_about(sent))
    of_another = mailbox.deliver(OFFER)
    of_another.flags.add(DELETED)  # by another client, which has not expunged
    bounce_mailbox.read()
    assert [(it.content, it.flags) for it in mailbox.messages] == [
        (OFFER, {SEEN}),
        (OFFER, {DELETED}),
    ]


def test_a_server_without_uidplus_keeps_what_is_marked_as_deleted(sent, epica_mail) -> None:
    with IMAPServer(uidplus=False) as server:
        epica_mail(BOUNCE_MAILBOX=uri(server), DELETE_BOUNCES=True)
        server.deliver(report_about(sent))
        assert bounce_mailbox.read() == counts(recorded=1)
        assert flags(server) == [{SEEN, DELETED}]
        assert bounce_mailbox.read() == counts()


def test_a_run_reads_a_bounded_number_and_the_next_goes_on(mailbox) -> None:
    for _ in range(5):
        mailbox.deliver(OFFER)
    assert bounce_mailbox.read(most=3) == counts(unrecognised=3)
    assert bounce_mailbox.read(seconds=0) == counts(unrecognised=1)
    assert bounce_mailbox.read() == counts(unrecognised=1)


def test_a_large_mailbox_is_searched_in_parts(mailbox, monkeypatch) -> None:
    monkeypatch.setattr(bounce_mailbox, "_WINDOW", 2)
    for number in range(5):
        mailbox.deliver(OFFER).flags |= {SEEN} if number < 4 else set()
    assert bounce_mailbox.read() == counts(unrecognised=1)
    assert mailbox.commands.count("UID SEARCH") == 3


@pytest.mark.parametrize("seconds", [60, 0])
def test_a_message_that_the_server_cannot_give_does_not_keep_back_the_others(
    mailbox, sent, epica_mail, seconds: int
) -> None:
    epica_mail(DELETE_BOUNCES=True)
    mailbox.withheld = mailbox.deliver(OFFER)
    mailbox.deliver(report_about(sent))
    with pytest.raises(MailboxError, match="it cannot be converted"):
        bounce_mailbox.read(seconds=seconds)
    assert suppression.is_suppressed(GONE) is bool(seconds)
    assert (mailbox.withheld.flags, len(mailbox.messages)) == (set(), 1 if seconds else 2)


def test_a_server_that_announces_messages_without_end_is_left(mailbox) -> None:
    mailbox.deliver(OFFER)
    mailbox.announces = 10**18
    began = time.monotonic()
    assert bounce_mailbox.read(seconds=0.5) == counts(unrecognised=1)
    assert time.monotonic() - began < 3
    assert mailbox.commands[-1] == "LOGOUT"


@pytest.mark.parametrize("first", [b"* OK ready\r\n", b"* OK "])
def test_a_server_that_drips_its_answers_is_left(first, epica_mail, monkeypatch) -> None:
    monkeypatch.setattr(bounce_mailbox, "_MOST_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connected, _ = listener.accept()
            with connected, contextlib.suppress(OSError):
                connected.sendall(first)
                while True:
                    connected.sendall(b"x")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        port = listener.getsockname()[1]
        epica_mail(BOUNCE_MAILBOX={"URI": f"imap://b@127.0.0.1:{port}", "PASSWORD": "secret"})
        began = time.monotonic()
        with pytest.raises(MailboxError):
            bounce_mailbox.read()
    assert time.monotonic() - began < 3


def test_what_the_database_refuses_is_read_again(mailbox, sent, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("the database is down")

    mailbox.deliver(report_about(sent))
    with monkeypatch.context() as patch:
        patch.setattr(incoming, "receive", refuse)
        with pytest.raises(OperationalError):
            bounce_mailbox.read()
    assert flags(mailbox) == [set()]
    assert bounce_mailbox.read() == counts(recorded=1)


@pytest.mark.parametrize("error", [RuntimeError, DataError])
def test_one_message_that_cannot_be_read_does_not_stop_the_others(
    mailbox, sent, monkeypatch, caplog, error
) -> None:
    receive = incoming.receive

    def fail_once(content: bytes, **options: Any) -> Any:
        if content == OFFER:
            raise error("secret@example.com")
        return receive(content, **options)

    monkeypatch.setattr(incoming, "receive", fail_once)
    mailbox.deliver(OFFER)
    mailbox.deliver(report_about(sent))
    assert bounce_mailbox.read() == counts(recorded=1, unrecognised=1)
    assert error.__name__ in caplog.text
    assert "secret@example.com" not in caplog.text


def test_a_large_message_is_read_in_part(mailbox, sent) -> None:
    mailbox.deliver(report_about(sent) + b"x" * (3 << 20))
    assert bounce_mailbox.read() == counts(recorded=1)


def test_a_wrong_password_is_told_and_not_shown(imap, epica_mail) -> None:
    epica_mail(BOUNCE_MAILBOX=uri(imap, PASSWORD="not-this-one"))
    with pytest.raises(MailboxError, match=r"AUTHENTICATIONFAILED") as caught:
        bounce_mailbox.read()
    assert "not-this-one" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_folder_that_does_not_exist_is_told(imap, epica_mail) -> None:
    place = uri(imap)
    epica_mail(BOUNCE_MAILBOX={**place, "URI": f"{place['URI']}/Old%20bounces"})
    with pytest.raises(MailboxError, match="no such mailbox"):
        bounce_mailbox.read()
    imap.folder = "Old bounces"
    assert bounce_mailbox.read() == counts()


def test_a_server_that_is_down_is_told(imap, epica_mail) -> None:
    epica_mail(BOUNCE_MAILBOX=uri(imap))
    imap.stop()
    with pytest.raises(MailboxError, match="ConnectionRefusedError"):
        bounce_mailbox.read()


def test_the_password_goes_out_over_tls_to_a_server_that_is_trusted(
    epica_mail, sent, tmp_path, monkeypatch
) -> None:
    with TokenAuthority(tmp_path, "bounces") as authority, IMAPServer(tls=authority.tls) as server:
        place = uri(server)
        epica_mail(BOUNCE_MAILBOX={**place, "URI": place["URI"].replace("imap:", "imaps:")})
        server.deliver(report_about(sent))
        with pytest.raises(MailboxError, match="certificate verify failed"):
            bounce_mailbox.read()
        assert "LOGIN" not in server.commands
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        assert bounce_mailbox.read() == counts(recorded=1)


def test_no_password_goes_out_in_clear_to_another_host(imap, epica_mail, monkeypatch) -> None:
    epica_mail(BOUNCE_MAILBOX=uri(imap))
    monkeypatch.setattr(bounce_mailbox, "is_loopback", lambda host: False)
    with pytest.raises(MailboxError, match="TLS not supported"):
        bounce_mailbox.read()
    assert "LOGIN" not in imap.commands


def tokens() -> Iterator[str]:
    for number in range(10):
        yield f"token-{number}"


made = tokens()


def fetch_token() -> tuple[str, int]:
    """Return the next access token, as a site's own function does."""
    return next(made), 3600


def test_an_access_token_opens_the_mailbox_and_is_renewed_once(epica_mail, sent) -> None:
    valid: set[str] = set()
    with IMAPServer(accepts_token=valid.__contains__) as server:
        form = {"token": f"{__name__}.fetch_token"}
        epica_mail(BOUNCE_MAILBOX=uri(server, OAUTH=form))
        with pytest.raises(MailboxError) as caught:
            bounce_mailbox.read()
        assert "token-" not in str(caught.value)
        valid |= {"token-1", "token-2"}
        server.deliver(report_about(sent))
        assert bounce_mailbox.read() == counts(recorded=1)  # token-0 is refused, token-1 is not
        assert bounce_mailbox.read() == counts()
        assert server.commands.count("AUTHENTICATE") == 4


# -- Maildir


def test_a_maildir_is_read_and_its_messages_become_seen(maildir, sent) -> None:
    (maildir / "new" / "1.a.host").write_bytes(report_about(sent))
    (maildir / "new" / "2.b.host").write_bytes(OFFER)
    assert bounce_mailbox.read() == counts(recorded=1, unrecognised=1)
    assert os.listdir(maildir / "new") == []
    assert sorted(os.listdir(maildir / "cur")) == ["1.a.host:2,S", "2.b.host:2,S"]
    assert bounce_mailbox.read() == counts()


def test_in_a_maildir_only_what_was_recorded_is_deleted(maildir, sent, epica_mail) -> None:
    epica_mail(DELETE_BOUNCES=True)
    (maildir / "new" / "1.a.host").write_bytes(report_about(sent))
    (maildir / "new" / "2.b.host").write_bytes(OFFER)
    bounce_mailbox.read()
    assert os.listdir(maildir / "cur") == ["2.b.host:2,S"]


def test_a_maildirs_links_and_pipes_are_not_followed(maildir, tmp_path, sent) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(report_about(sent))
    (maildir / "new" / "1.link").symlink_to(secret)
    os.mkfifo(maildir / "new" / "2.pipe")
    (maildir / "new" / "3.folder").mkdir()
    assert bounce_mailbox.read() == counts()
    assert not EmailEvent.objects.exists()


def test_a_folder_that_is_no_maildir_is_told(tmp_path, epica_mail) -> None:
    epica_mail(BOUNCE_MAILBOX=f"maildir:{tmp_path}")
    with pytest.raises(MailboxError, match="is no Maildir"):
        bounce_mailbox.read()


# -- the setting, the task


@pytest.mark.parametrize(
    "value",
    [
        "imaps://imap.example.com/INBOX",
        "pop3://user@imap.example.com",
        "maildir:relative/path",
        "maildir://host/path",
        "imaps://user@[::1",
        "imaps://user@imap.example.com:99999",
        {"URI": "imaps://hunter2:@imap.example.com"},
        {"URI": "imaps://hunter2@imap.example.com", "PASSWORD": "hunter2", "OAUTH": {}},
    ],
)
def test_a_value_that_names_no_mailbox_is_reported_and_not_shown(value: Any, epica_mail) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        bounce_mailbox.parse(value)
    assert "BOUNCE_MAILBOX" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    epica_mail(BOUNCE_MAILBOX=value)
    assert "epica_mail.E050" in {it.id for it in checks.run_checks()}


def test_a_mailbox_whose_reports_can_suppress_nobody_is_warned_of(maildir, epica_mail) -> None:
    def found() -> set[Any]:
        return {it.id for it in checks.run_checks()} & {"epica_mail.W050", "epica_mail.E050"}

    assert found() == {"epica_mail.W050"}
    epica_mail(TRUST_UNSIGNED_BOUNCES=True)
    assert found() == set()


def test_the_parts_of_a_uri_may_be_quoted() -> None:
    place = bounce_mailbox.parse(
        {"URI": "imaps://bounces%40example.com@imap.example.com/Old%20mail", "PASSWORD": "x y"}
    )
    assert isinstance(place, bounce_mailbox.ImapPlace)
    assert (place.user, place.port, place.folder) == ("bounces@example.com", 993, "Old mail")
    assert "x y" not in repr(place)


def test_the_periodic_task_reads_the_mailbox_once_there_is_one(mailbox, epica_mail) -> None:
    mailbox.deliver(OFFER)
    assert read_bounces.apply().get() == counts(unrecognised=1)
    epica_mail(BOUNCE_MAILBOX=None)
    assert read_bounces.apply().get() == {}
