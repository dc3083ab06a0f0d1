"""What reports are understood as, and that no report can hold up the reader."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.replies import says_no_such_address
from django_epica_mail.tracking.bounces.reports import (
    MAX_BYTES,
    MAX_RECIPIENTS,
    Kind,
    Report,
    parse,
)
from tests.returned import FOLDER, returned

GONE = "gone@example.net"
BOUNCED, DEFERRED = Kind.BOUNCED, Kind.DEFERRED
COMPLAINED, AUTORESPONDED = Kind.COMPLAINED, Kind.AUTORESPONDED

FORMS = {
    # file: what it says, whether for good, and words of the server's reply
    "postfix": (BOUNCED, True, "User unknown in virtual mailbox table (5.1.1)"),
    "postfix-delayed": (DEFERRED, False, "Connection timed out (4.4.1)"),
    "exim": (BOUNCED, True, "550 No such user here (5.0.0)"),
    "exim-text": (BOUNCED, True, "Unrouteable address: 550 user unknown"),
    "sendmail": (BOUNCED, True, "User unknown (5.1.1)"),
    "qmail": (BOUNCED, True, "Sorry, no mailbox here by that name. (#5.1.1)"),
    "microsoft365": (BOUNCED, True, "550 5.1.10 RESOLVER.ADR.RecipientNotFound"),
    "gmail": (BOUNCED, True, "550-5.1.1 The email account"),
    "yahoo": (BOUNCED, True, "554: delivery error: dd This user doesn't have"),
    "amazon-ses": (BOUNCED, True, "550 5.1.1 user unknown (5.1.1)"),
    "haraka": (BOUNCED, True, "550 5.1.1 mailbox does not exist (5.1.1)"),
    "opensmtpd": (BOUNCED, True, "550 Invalid recipient <gone@example.net> (5.0.0)"),
    "mimecast": (BOUNCED, True, "550 Invalid Recipient"),
    "mailbox-full": (BOUNCED, False, "552 5.2.2"),
    "feedback": (COMPLAINED, False, ""),
    "feedback-outlook": (COMPLAINED, False, ""),
    "absence-exchange": (AUTORESPONDED, False, ""),
    "absence-vacation": (AUTORESPONDED, False, ""),
}


def parsed(content: bytes | str) -> Report:
    report = parse(content.encode() if isinstance(content, str) else content)
    assert report is not None
    return report


def test_every_form_in_the_test_data_is_examined() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_each_servers_form_is_understood(name: str) -> None:
    kind, is_for_good, words = FORMS[name]
    report = parsed(returned(name))
    (verdict,) = report.verdicts
    assert verdict.kind is kind
    assert verdict.addresses == (GONE,)
    assert words in verdict.reply
    assert says_no_such_address(verdict.reply) is is_for_good
    assert report.message_ids == ("<order-1@shop.example.com>",)
    assert any("bounces@shop.example.com" in text for text in report.tied_by)
    assert report.at is not None
    assert report.at.astimezone(timezone.utc).date() == datetime(2026, 10, 12).date()


@pytest.mark.parametrize("name", FORMS)
def test_line_ends_and_a_pipes_first_line_make_no_difference(name: str) -> None:
    content = returned(name)
    unix = content.replace(b"\r\n", b"\n")
    assert parse(unix) == parse(content)
    assert parse(b"From MAILER-DAEMON Mon Oct 12 09:14:07 2026\n" + unix) == parse(content)


def status(*recipients: str, head: str = "Reporting-MTA: dns; mx.example.com") -> str:
    return "\n".join(
        [
            "From: MAILER-DAEMON@example.com",
            "Content-Type: multipart/report; report-type=delivery-status; boundary=b",
            "",
            "--b",
            "Content-Type: message/delivery-status",
            "",
            "\n\n".join([head, *recipients]),
            "--b--",
        ]
    )


def test_each_recipient_of_a_report_has_its_own_verdict() -> None:
    report = parsed(
        status(
            "Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1",
            "Final-Recipient: rfc822; b@example.com\nAction: delayed\nStatus: 4.4.7",
            "Final-Recipient: rfc822; c@example.com\nAction: delivered\nStatus: 2.0.0",
            "Final-Recipient: rfc822; d@example.com\nAction: relayed\nStatus: 2.0.0",
        )
    )
    assert [(it.addresses, it.kind) for it in report.verdicts] == [
        (("a@example.com",), Kind.BOUNCED),
        (("b@example.com",), Kind.DEFERRED),
        (("c@example.com",), Kind.DELIVERED),
    ]


def test_the_original_recipient_comes_before_where_it_was_forwarded_to() -> None:
    report = parsed(
        status(
            "Original-Recipient: rfc822; ann+2Bnews@example.com\n"
            "Final-Recipient: rfc822; ann@elsewhere.example\nAction: failed\nStatus: 5.1.1"
        )
    )
    assert report.verdicts[0].addresses == (
        "ann+2Bnews@example.com",
        "ann+news@example.com",  # xtext, RFC 3461
        "ann@elsewhere.example",
    )


def test_without_an_action_the_class_of_the_status_counts() -> None:
    report = parsed(status("Final-Recipient: rfc822; a@example.com\nStatus: 5.1.1"))
    assert report.verdicts[0].kind is Kind.BOUNCED


def test_an_international_address_is_read() -> None:
    named = "Final-Recipient: utf-8; ayşe@örnek.example\nAction: failed\nStatus: 5.1.1"
    content = status(named).replace("message/delivery", "message/global-delivery")
    assert parsed(content).verdicts[0].addresses == ("ayşe@örnek.example",)


@pytest.mark.parametrize("kind", ["not-spam", "auth-failure", "virus", ""])
def test_feedback_that_is_no_complaint_says_nothing(kind: str) -> None:
    content = returned("feedback").replace(
        b"Feedback-Type: abuse", f"Feedback-Type: {kind}".encode()
    )
    assert parse(content) is None


def test_a_report_that_was_forwarded_as_an_attachment_is_not_believed() -> None:
    inner = returned("postfix").decode().replace("\r\n", "\n")
    outer = f"From: a@example.com\nContent-Type: message/rfc822\n\n{inner}"
    assert parse(outer.encode()) is None


def test_a_mail_that_only_speaks_of_refusals_is_no_bounce() -> None:
    text = "From: a@example.com\nReturn-Path: <>\n\n<b@example.com>:\n550 5.1.1 no such user\n"
    assert parse(text.encode()) is None


def test_the_returned_mail_is_not_taken_for_the_servers_words() -> None:
    assert len(parsed(returned("qmail")).verdicts) == 1
    assert "points" not in parsed(returned("exim-text")).verdicts[0].reply


def test_what_a_server_says_controls_no_terminal() -> None:
    diagnostic = "Diagnostic-Code: smtp; 550 5.1.1 \x1b[31mred\x07\u202etxt"
    named = f"Final-Recipient: rfc822; a@example.com\nAction: failed\n{diagnostic}"
    assert parsed(status(named)).verdicts[0].reply == "550 5.1.1 redtxt"


DAEMON = "From: Mail system <MAILER-DAEMON@mx.example.com>\nAuto-Submitted: auto-replied\n"
WORDS = {
    # header and text: what it says, the address, and words of the reply
    "paragraphs": (
        f"{DAEMON}Subject: failure\n\nSorry.\n\n<a@example.com>:\nThe folder is full.\n\n"
        "<b@example.com>: host not found,\n try again\n\n--- Below this line is a copy\n<c@d>: x",
        [
            (BOUNCED, ("a@example.com",), "The folder is full."),
            (BOUNCED, ("b@example.com",), "host not found, try again"),
        ],
    ),
    "delay": (
        f"{DAEMON}Subject: Warning: message delayed 24 hours\n\nIt has not been delivered yet.",
        [(DEFERRED, (), "It has not been delivered yet.")],
    ),
    "another language": (
        f"{DAEMON}Subject: =?utf-8?b?0JLQsNGI?=\n\nNe pouvait pas.",
        [(BOUNCED, (), "Ne pouvait pas.")],
    ),
    "success": ("From: postmaster@example.com\nSubject: Delivery Status (Success)\n\nDone.", []),
    "a person": ("From: postmaster@example.com\nSubject: Your question\n\nWe looked.", []),
    "a postmaster on holiday": (
        "From: postmaster@example.com\nAuto-Submitted: auto-replied\nSubject: away\n\nBye.",
        [(AUTORESPONDED, ("postmaster@example.com",), "")],
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_words_of_a_mail_system_are_understood(name: str) -> None:
    content, wanted = WORDS[name]
    report = parse(content.encode())
    found = report.verdicts if report else ()
    assert [(it.kind, it.addresses, it.reply) for it in found] == wanted


def test_an_action_that_no_standard_knows_is_decided_by_the_status() -> None:
    named = "Final-Recipient: rfc822; a@example.com\nAction: error\nStatus: 5.1.1"
    assert parsed(status(named)).verdicts[0].kind is BOUNCED


# -- bounds


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    parse(content)
    parse(b"Content-Type: multipart/report; boundary=b\n\n--b\n" + content + b"\n--b--")
    parse(status(content.decode("latin-1")).encode())


@given(st.sampled_from(sorted(FORMS)), st.data())
def test_a_damaged_report_breaks_nothing(name: str, data: st.DataObject) -> None:
    content = returned(name)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    parse(content[:start] + data.draw(st.binary(max_size=20)) + content[end:])


MIB = 1 << 20
NESTED = "".join(
    f'Content-Type: multipart/mixed; boundary="{"b" * n}"\n\n--{"b" * n}\n' for n in range(1, 500)
)
HOSTILE = {
    "nested": NESTED + "x\n" * 200_000,
    "boundaries": "Content-Type: multipart/mixed; boundary=b\n\n" + "--b\n" * 250_000,
    "almost boundaries": "Content-Type: multipart/mixed; boundary=b\n\n--b\n" + "--bb\n" * 200_000,
    "one header": "Content-Type: multipart/mixed" + ";a=" * 300_000,
    "folded": "X: a\n" + " b\n" * 300_000,
    "headers": "A: b\n" * 200_000,
    "recipients": status(*["Final-Recipient: rfc822; a@b.c\nAction: failed"] * 20_000),
    "parts": "Content-Type: multipart/report; boundary=b\n\n"
    + "\n--b\nContent-Type: message/delivery-status\n\n".join(
        ["", *["Final-Recipient: rfc822; a@b.c\nAction: failed\n\n" * 500] * 30]
    ),
    "long words and many parts": "Content-Type: multipart/report; boundary=b\n\n"
    + "--b\nContent-Type: text/plain\n\n"
    + ("550 5.1.1 " + "w@x.yz " * 100 + "\n") * 450
    + "".join(
        "\n--b\nContent-Type: message/delivery-status\n\n"
        + "\n\n".join(
            f"Final-Recipient: rfc822; r{part}-{it}@b.c\nAction: failed" for it in range(100)
        )
        for part in range(100)
    ),
    "parentheses": status("Final-Recipient: rfc822; " + "(" * MIB),
    "failed": "X-Failed-Recipients: " + "(," * 400_000 + "\n" * 2 + "550 x\n" * 100_000,
    "qmail": "From: mailer-daemon@x\n\nHi. This is \n" + "<a@b.c>:\n550 x\n\n" * 60_000,
    "digits": "From: mailer-daemon@x\n\n" + "5.5" * 300_000,
    "message ids": "In-Reply-To: " + "<a" * 400_000 + "\nAuto-Submitted: auto-replied\n\n",
    "a boundary of no charset": "Content-Type: multipart/mixed; boundary*=a\0b''%61\n\nx",
    "a boundary without a number": "Content-Type: multipart/mixed; boundary*0=x; boundary*=2\n\nx",
    "base64": "Content-Transfer-Encoding: base64\n\n" + "=" * MIB,
    "quoted": "Content-Transfer-Encoding: quoted-printable\n\n" + "=\n" * (MIB // 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_report_is_read_in_bounded_time(name: str) -> None:
    content = HOSTILE[name].encode()
    started = time.process_time()
    report = parse(content)
    assert time.process_time() - started < 1
    assert report is None or len(report.verdicts) <= MAX_RECIPIENTS


def test_only_the_beginning_of_a_large_report_is_read() -> None:
    content = returned("postfix")
    assert parse(content + b"x" * 3 * MAX_BYTES) == parse(content)
    assert parse(b"X-Padding: x\n" * (MAX_BYTES // 12) + content) is None


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 user unknown\n\nMessage-ID: <a=00b@example.com>",
        "550 5.1.1 user unknown: <a=00b@example.com>",
    ],
)
def test_no_nul_reaches_the_database(text) -> None:
    report = parsed(
        "From: MAILER-DAEMON@mx.example\nSubject: Undelivered mail\nX: \0\n"
        f"Content-Transfer-Encoding: quoted-printable\n\n{text}\n"
    )
    assert "\0" not in repr(report).replace("\\x00", "\0")


def test_an_address_with_a_nul_in_its_international_form_is_read_without_it() -> None:
    report = parsed(
        status("Final-Recipient: rfc822; a+00b@example.com\nAction: failed\nStatus: 5.1.1")
    )
    assert "\\x00" not in repr(report)
