"""What replies and exceptions mean; and their text, which controls no terminal and no page."""

from __future__ import annotations

import smtplib
import socket
import time
import unicodedata
from itertools import pairwise

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import replies
from django_epica_mail.retry import Kind, Scope, Stage

ENDLESS = {Kind.OUTAGE, Kind.THROTTLED}
IN_DOUBT = {Kind.UNKNOWN, Kind.WORKER_LOST}

hostile = st.text(
    st.sampled_from(
        "\x1b[]0;31mHPX^_\\\x07\x9b\x9c\x9d\x90\r\n\t\0\u202e\u2066\u200b\u2028\ud800a "
    )
)


@given(hostile | st.binary() | st.text())
def test_the_text_of_a_reply_is_one_line_without_controls(words: bytes | str) -> None:
    text = replies.reply_text(words)
    assert not [it for it in text if unicodedata.category(it) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert replies.reply_text(text) == text
    assert len(text) <= replies.REPLY_LENGTH


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("550 5.1.1 no such user", True),
        ("550-5.1.1 The account does not exist", True),
        ("smtp; 550 5.1.10 RESOLVER.ADR.RecipientNotFound", True),
        ("550 5.2.1 mailbox disabled", True),
        ("550 5.4.310 DNS domain does not exist", True),
        ("550 User unknown (5.0.0)", True),
        ("550 5.1.0 unknown user", True),
        ("554: delivery error: This user doesn't have an account", True),
        ("552 5.2.2 mailbox full, unknown user quota", False),
        ("550 5.7.1 spam; user unknown (5.1.1)", False),  # the first code is the more specific
        ("450 4.1.1 user unknown", False),
        ("450 user unknown", False),
        ("550 rejected", False),
        ("user unknown", False),
        ("550 blocked, see 5.1.1.20", False),
        ("550 blocked [5.1.1.20]", False),
        ("(Exim 5.11.1) 550 no", False),
        ("relay 4.94.2 said 550 no such user", True),
        ("", False),
    ],
)
def test_only_an_address_that_does_not_exist_is_said_not_to(text: str, is_so: bool) -> None:
    assert replies.says_no_such_address(text) is is_so


def test_an_endless_reply_is_cut_before_it_is_read() -> None:
    started = time.monotonic()
    for words in ("\x1b]" * 10_000_000, b"\x1b[" * 10_000_000):
        assert replies.reply_text(words) == ""
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (b"5.1.1 \x1b[31mred\x1b[0m", "5.1.1 red"),
        (b"\x1b]0;title\x07Gone", "Gone"),
        ("a\u202eb\u2066c\u200bd", "abcd"),
        (b"one\ntwo\r\nthree", "one two  three"),
        ("\x9b2Jcleared", "cleared"),
        (b"\x1bcreset", "reset"),
        ("Ayşe yok", "Ayşe yok"),
    ],
)
def test_a_reply_cannot_control_a_terminal_or_a_page(words, shown) -> None:
    assert replies.reply_text(words) == shown
    assert replies.classify_reply(550, words).reply == shown


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (450, "4.2.0 Greylisted", Kind.TRANSIENT),
        (451, "4.3.0 Try again later", Kind.TRANSIENT),
        (452, "4.3.1 Disk full", Kind.TRANSIENT),
        (421, "4.3.2 Shutting down", Kind.OUTAGE),
        (421, "4.7.0 Too many messages, slow down", Kind.THROTTLED),
        (550, "5.1.1 No such user", Kind.PERMANENT),
        (552, "5.3.4 Message too big", Kind.PERMANENT),
        (554, "5.7.1 Spam", Kind.PERMANENT),
        (199, "nonsense", Kind.TRANSIENT),
        (450, "4.2.1 He is receiving mail at a rate that prevents more", Kind.THROTTLED),
        (452, "4.4.5 Congested", Kind.THROTTLED),
        (453, "4.3.2 Accepting no messages", Kind.OUTAGE),
        (452, "4.2.2 Mailbox full", Kind.TRANSIENT),
        (552, "5.2.2 Mailbox full", Kind.TRANSIENT),
        (550, "5.2.21 Not in the table", Kind.PERMANENT),
        (554, "5.7.8 Credentials expired", Kind.OUTAGE),
        (550, "Too many invalid recipients", Kind.PERMANENT),
        (550, "The words 5.2.2 within", Kind.PERMANENT),
    ],
)
def test_a_reply_is_classified(code: int, text: str, kind: Kind) -> None:
    failure = replies.classify_reply(code, text.encode())
    assert (failure.kind, failure.code, failure.reply) == (kind, code, text)


@pytest.mark.parametrize(
    ("error", "stage", "kind"),
    [
        (ConnectionRefusedError(), Stage.CONNECT, Kind.OUTAGE),
        (socket.gaierror(), Stage.CONNECT, Kind.OUTAGE),
        (TimeoutError(), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPAuthenticationError(535, b"5.7.8 Bad"), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPConnectError(554, b"No"), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPConnectError(421, b"Too many connections"), Stage.CONNECT, Kind.THROTTLED),
        (smtplib.SMTPServerDisconnected(), Stage.ENVELOPE, Kind.TRANSIENT),
        (ConnectionResetError(), Stage.ENVELOPE, Kind.TRANSIENT),
        (smtplib.SMTPSenderRefused(550, b"No", "a"), Stage.ENVELOPE, Kind.PERMANENT),
        (smtplib.SMTPDataError(451, b"Later"), Stage.ENVELOPE, Kind.TRANSIENT),
        (ValueError("bad address"), Stage.ENVELOPE, Kind.MESSAGE),
        (smtplib.SMTPNotSupportedError("SMTPUTF8"), Stage.ENVELOPE, Kind.MESSAGE),
        (RuntimeError("a time limit"), Stage.ENVELOPE, Kind.TRANSIENT),
        (smtplib.SMTPServerDisconnected(), Stage.CONTENT, Kind.UNKNOWN),
        (TimeoutError(), Stage.CONTENT, Kind.UNKNOWN),
        (smtplib.SMTPDataError(-1, b"garbage"), Stage.ANSWERED, Kind.UNKNOWN),
        (smtplib.SMTPDataError(554, b"Spam"), Stage.ANSWERED, Kind.PERMANENT),
        (smtplib.SMTPDataError(451, b"Later"), Stage.ANSWERED, Kind.TRANSIENT),
        (ConnectionRefusedError(), Stage.UNSEEN, Kind.OUTAGE),
        (TimeoutError(), Stage.UNSEEN, Kind.UNKNOWN),
        (smtplib.SMTPAuthenticationError(535, b"Bad"), Stage.UNSEEN, Kind.OUTAGE),
        (smtplib.SMTPConnectError(554, b"No"), Stage.UNSEEN, Kind.OUTAGE),
        (smtplib.SMTPHeloError(550, b"No"), Stage.UNSEEN, Kind.OUTAGE),
        (ImproperlyConfigured("no key"), Stage.UNSEEN, Kind.OUTAGE),
        (ImproperlyConfigured("no key"), Stage.CONTENT, Kind.UNKNOWN),
        (smtplib.SMTPDataError(554, b"Spam"), Stage.UNSEEN, Kind.PERMANENT),
    ],
)
def test_an_exception_is_classified_by_stage(error: Exception, stage: Stage, kind: Kind) -> None:
    assert replies.classify(error, stage).kind is kind


def test_a_refused_login_concerns_the_credentials() -> None:
    refused = smtplib.SMTPAuthenticationError(535, b"Bad user name")
    assert replies.classify(refused, Stage.CONNECT).scope is Scope.CREDENTIALS
    assert replies.classify(refused, Stage.UNSEEN).scope is Scope.CREDENTIALS
    busy = smtplib.SMTPConnectError(554, b"No")
    assert replies.classify(busy, Stage.CONNECT).scope is Scope.SERVER


@pytest.mark.parametrize(
    ("code", "text", "kind", "scope"),
    [
        (550, "5.7.8 Expired", Kind.OUTAGE, Scope.CREDENTIALS),
        (530, "5.7.0 Authentication required", Kind.OUTAGE, Scope.CREDENTIALS),
        (530, "Must issue STARTTLS first", Kind.OUTAGE, Scope.CREDENTIALS),
        (552, "5.2.2 Mailbox full", Kind.TRANSIENT, Scope.RECIPIENT),
        (453, "4.3.2 Accepting no messages", Kind.OUTAGE, Scope.SERVER),
        (452, "4.4.5 Congested", Kind.THROTTLED, Scope.SERVER),
        (421, "4.2.1 Mailbox disabled", Kind.TRANSIENT, Scope.RECIPIENT),
        (421, "4.7.0 This message has suspicious content", Kind.TRANSIENT, Scope.MAIL),
        (421, "4.6.0 Bad media", Kind.TRANSIENT, Scope.MAIL),
        (421, "4.7.28 Unusual rate of mail", Kind.THROTTLED, Scope.DOMAIN),
        (421, "4.7.0 [TSS04] Deferred due to unexpected volume", Kind.THROTTLED, Scope.DOMAIN),
        (451, "4.7.650 Temporarily rate limited", Kind.THROTTLED, Scope.DOMAIN),
        (450, "4.7.1 Too many messages, slow down", Kind.THROTTLED, Scope.DOMAIN),
        (454, "4.7.0 Throttling failure: maximum rate", Kind.THROTTLED, Scope.SERVER),
        (450, "4.7.0 Daily sending rate exceeded", Kind.THROTTLED, Scope.SERVER),
        (450, "Too many messages, slow down", Kind.THROTTLED, Scope.SERVER),
        (450, "4.2.1 He is receiving mail at a rate", Kind.THROTTLED, Scope.RECIPIENT),
        (454, "daily message quota exceeded", Kind.THROTTLED, Scope.SERVER),
        (452, "4.5.3 Hourly sending limit reached", Kind.THROTTLED, Scope.SERVER),
        (452, "Message size limit exceeded", Kind.TRANSIENT, Scope.MAIL),
        (421, "4.3.0 Temporary system problem", Kind.TRANSIENT, Scope.SERVER),
        (421, "Service not available", Kind.TRANSIENT, Scope.SERVER),
        (550, "5.1.8 Bad sender's system address", Kind.PERMANENT, Scope.SENDER),
        (553, "5.1.7 Bad sender's mailbox address", Kind.PERMANENT, Scope.SENDER),
        (550, "5.1.1 No such user", Kind.PERMANENT, Scope.RECIPIENT),
        (550, "5.2.1 Disabled", Kind.PERMANENT, Scope.RECIPIENT),
        (554, "5.7.1 Spam", Kind.PERMANENT, Scope.MAIL),
        (450, "4.2.0 Greylisted", Kind.TRANSIENT, Scope.MAIL),
    ],
)
def test_each_row_of_the_table_gives_a_fault_its_kind_and_scope(code, text, kind, scope) -> None:
    failure = replies.classify_reply(code, text)
    assert (failure.kind, failure.scope) == (kind, scope)


def test_a_failure_to_connect_concerns_the_server() -> None:
    for error in (ConnectionRefusedError(), smtplib.SMTPConnectError(554, b"No")):
        failure = replies.classify(error, Stage.CONNECT)
        assert (failure.kind, failure.scope) == (Kind.OUTAGE, Scope.SERVER)


def test_one_recipient_to_retry_keeps_the_mail_alive() -> None:
    error = smtplib.SMTPRecipientsRefused({"a": (550, b"Gone"), "b": (451, b"Later")})
    assert replies.classify(error, Stage.ENVELOPE).kind is Kind.TRANSIENT


@given(st.tuples(st.integers(-1, 999), st.binary() | st.text()))
def test_a_reply_is_classified_by_code_and_its_text_is_storable(
    reply: tuple[int, bytes | str],
) -> None:
    code, _ = reply
    failure = replies.classify_reply(*reply)
    if code == 421:
        assert failure.kind in {*ENDLESS, Kind.TRANSIENT}
    elif 500 <= code < 600:
        assert failure.kind is (Kind.OUTAGE if code == 530 else Kind.PERMANENT)
    else:
        assert failure.kind is Kind.TRANSIENT
    assert failure.code == (code if code > 0 else None)
    assert len(failure.reply) <= replies.REPLY_LENGTH
    assert failure.reply.encode().decode() == failure.reply


errors = st.one_of(
    st.builds(smtplib.SMTPDataError, st.integers(-1, 999), st.binary()),
    st.builds(smtplib.SMTPSenderRefused, st.integers(-1, 999), st.binary(), st.just("a@b")),
    st.builds(smtplib.SMTPServerDisconnected, st.text()),
    st.dictionaries(st.text(), st.tuples(st.integers(400, 599), st.binary()), min_size=1).map(
        smtplib.SMTPRecipientsRefused
    ),
    st.sampled_from([OSError, TimeoutError, ValueError, RuntimeError, KeyError]).flatmap(
        lambda kind: st.builds(kind, st.text())
    ),
)


@given(errors, st.sampled_from(Stage))
def test_doubt_remains_only_if_content_may_have_been_taken(error: Exception, stage: Stage) -> None:
    failure = replies.classify(error, stage)
    has_reply = isinstance(error, smtplib.SMTPRecipientsRefused) or (
        isinstance(error, smtplib.SMTPResponseException)
        and (400 <= error.smtp_code < 600 if stage >= Stage.ANSWERED else error.smtp_code > 0)
    )
    if has_reply or stage in (Stage.CONNECT, Stage.ENVELOPE):
        assert failure.kind not in IN_DOUBT
    elif stage in (Stage.CONTENT, Stage.ANSWERED):
        assert failure.kind is Kind.UNKNOWN
    if stage is Stage.CONNECT and not isinstance(error, smtplib.SMTPRecipientsRefused):
        assert failure.kind in ENDLESS
    assert failure.kind is not Kind.WORKER_LOST


@pytest.mark.parametrize(
    ("code", "text", "found"),
    [
        (550, "5.1.1 no such user", "5.1.1"),
        (451, "4.7.651 later", "4.7.651"),
        (550, "no such user (5.1.1)", None),  # a reply starts with its code: RFC 2034, section 4
        (550, "4.7.1 later", None),  # of another class than the reply
        (550, "5.1", None),
        (None, "5.1.1 no such user", None),
        (550, "", None),
    ],
)
def test_the_enhanced_code_stands_at_the_start_of_a_reply(code, text, found) -> None:
    assert replies.enhanced_code(code, text) == found


@pytest.mark.parametrize(
    ("error", "stage", "scope"),
    [
        (smtplib.SMTPConnectError, Stage.CONNECT, Scope.SERVER),
        (smtplib.SMTPSenderRefused, Stage.ENVELOPE, Scope.SERVER),
        (smtplib.SMTPDataError, Stage.ENVELOPE, Scope.DOMAIN),
        (smtplib.SMTPDataError, Stage.ANSWERED, Scope.DOMAIN),
    ],
)
def test_only_replies_after_a_recipient_was_named_speak_of_a_domain(error, stage, scope) -> None:
    sender = ("a@example.com",) if error is smtplib.SMTPSenderRefused else ()
    failure = replies.classify(error(421, b"4.7.28 Unusual rate of mail", *sender), stage)
    assert (failure.kind, failure.scope) == (Kind.THROTTLED, scope)


@given(st.text("a@<> .", max_size=40) | st.text())
def test_no_mailbox_is_left_in_a_reply_without_addresses(text: str) -> None:
    shown = replies.without_addresses(text)
    assert replies.without_addresses(shown) == shown
    for before, at in pairwise(shown):
        assert at != "@" or before in "…@<>" or before.isspace()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('550 <"john smith"@example.com> unknown', "550 <…@example.com> unknown"),
        (r'550 "j \" smith"@example.com unknown', "550 …@example.com unknown"),
        ('550 "no user" ann@a.example "b c"@b.example', '550 "no user" …@a.example …@b.example'),
        ('"john@smith"@example.com', "…@…@example.com"),
        ('5"@example.com', "…@example.com"),
        ("ask postmaster @ example.com", "ask postmaster @ example.com"),
    ],
)
def test_a_quoted_mailbox_is_left_out_whole(text: str, shown: str) -> None:
    assert replies.without_addresses(text) == shown


def test_a_long_reply_loses_its_addresses_in_linear_time() -> None:
    started = time.monotonic()
    for text in ("x" * 300_000, 'x"' * 150_000, '"@' * 150_000, "x " * 150_000 + "@"):
        replies.without_addresses(text)
    assert time.monotonic() - started < 1
