"""Restricted recipients: redirection, allow-lists and limits against mail bombs."""

from __future__ import annotations

from email import message_from_bytes, policy
from typing import Any

import django
import pytest
from anymail.backends.test import EmailBackend as AnymailBackend
from anymail.message import AnymailMessage
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mail

from devservers.smtp_faults import refuse
from django_epica_mail import conf, outbox, signals, suppression, tasks
from django_epica_mail.delivery import prepare
from django_epica_mail.exceptions import InvalidMessage
from django_epica_mail.models import EmailAttachment, EmailLog
from django_epica_mail.queueing import bulk
from tests import corpus

STAGING = ["one@staging.example", "two@staging.example"]


def to_everyone(**options: Any) -> EmailLog:
    message = EmailMultiAlternatives(
        "Your order",
        "Body",
        "shop@example.com",
        ["Ann <ann@real.example>"],
        cc=["bob@real.example"],
        bcc=["cy@real.example", "dan@real.example"],
    )
    return outbox.enqueue(message, transport="smtp", **options)


def arrived(smtp: Any) -> Any:
    (one,) = smtp.accepted
    return one, message_from_bytes(one.content, policy=policy.default)


# -- redirection


def test_all_mail_of_a_staging_site_is_redirected(smtp, deliver, epica_mail) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    log = to_everyone()
    deliver()
    envelope, mail = arrived(smtp)
    assert envelope.recipients == tuple(STAGING)
    assert mail["Subject"] == (
        "[to ann@real.example, bob@real.example, cy@real.example and 1 more] Your order"
    )
    assert (mail["To"], mail["Cc"], mail["Bcc"]) == (", ".join(STAGING), None, None)
    assert mail["Message-ID"] == log.message_id
    others = {name: value for name, value in mail.items() if name not in ("Subject", "From")}
    assert "real.example" not in str(others)


def test_the_row_keeps_the_real_recipients_and_subject(smtp, deliver, epica_mail) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    log = to_everyone()
    deliver()
    log.refresh_from_db()
    assert (log.status, log.subject) == ("sent", "Your order")
    rows = log.recipients.values_list("address", "outcome")
    assert list(rows) == [(f"{name}@real.example", "") for name in ("ann", "bob", "cy", "dan")]


def test_rows_of_a_copied_database_are_redirected_too(smtp, deliver, epica_mail) -> None:
    to_everyone()
    epica_mail(REDIRECT_ALL_TO=STAGING)
    deliver()
    assert arrived(smtp)[0].recipients == tuple(STAGING)


@pytest.mark.parametrize("refused", [1, 2])
def test_refusals_of_redirect_addresses_mark_no_real_recipient(
    smtp, deliver, epica_mail, refused
) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=refused))
    log = to_everyone()
    deliver()
    log.refresh_from_db()
    assert log.status == ("sent" if refused == 1 else "failed")
    outcomes = set(log.recipients.values_list("outcome", flat=True))
    assert outcomes == {""}


def test_headers_that_name_other_recipients_are_removed(smtp, deliver, epica_mail) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING[:1])
    message = EmailMessage(
        "S", "B", None, ["ann@real.example"],
        headers={"To": "list@real.example", "cc": "others@real.example", "X-Kept": "yes"},
    )  # fmt: skip
    outbox.enqueue(message, transport="smtp")
    deliver()
    _, mail = arrived(smtp)
    assert (mail["To"], mail["Cc"], mail["X-Kept"]) == (STAGING[0], None, "yes")


def test_a_message_stored_as_bytes_is_redirected_too(smtp, deliver, epica_mail) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    message = dict(corpus.CORPUS)["class_that_builds_itself"]()
    outbox.enqueue(message, transport="smtp")
    deliver()
    envelope, mail = arrived(smtp)
    assert envelope.recipients == tuple(STAGING)
    assert mail["Subject"].startswith(f"[to {message.to[0]}")
    assert mail["Subject"].endswith(str(message.subject))


@pytest.fixture
def provider(settings: Any, epica_mail: Any, db: None, monkeypatch: Any) -> list[Any]:
    """Queue for anymail's test backend, and record what it would post."""
    backend = "anymail.backends.test.EmailBackend"
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"provider": {"BACKEND": backend}}
        epica_mail(DEFAULT_TRANSPORT="provider")
    else:
        epica_mail(TRANSPORTS={"provider": {"BACKEND": backend}})
    epica_mail(REAL_TRANSPORTS_IN_TESTS=True)
    posted: list[Any] = []
    post = AnymailBackend.post_to_esp

    def note(self: Any, payload: Any, message: Any) -> Any:
        posted.append(payload.get_params())
        return post(self, payload, message)

    monkeypatch.setattr(AnymailBackend, "post_to_esp", note)
    return posted


def addresses(params: Any, *names: str) -> list[str]:
    return [str(it) for name in names for it in params.get(name, ())]


def to_provider() -> None:
    outbox.enqueue(
        AnymailMessage(
            "S", "B", "shop@example.com", ["ann@real.example"],
            cc=["bob@real.example"], bcc=["cy@staging.example"],
        )
    )  # fmt: skip


def test_a_provider_gets_only_the_redirect_addresses(provider, deliver, epica_mail) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    to_provider()
    deliver()
    (params,) = provider
    assert addresses(params, "to", "cc", "bcc") == STAGING
    assert params["subject"].startswith("[to ann@real.example")


def test_a_provider_gets_only_allowed_addresses(provider, deliver, epica_mail) -> None:
    epica_mail(ALLOWED_RECIPIENTS=["staging.example"])
    to_provider()
    deliver()
    (params,) = provider
    assert addresses(params, "to", "cc", "bcc") == ["cy@staging.example"]


class Signed(EmailMultiAlternatives):
    """A message that builds its own MIME, and is therefore stored as bytes."""

    def message(self, **arguments: Any) -> Any:
        mime = super().message(**arguments)
        mime["Resent-Bcc"] = "third@real.example, " * 9 + "fourth@real.example"
        return mime


@pytest.mark.parametrize("kind", [EmailMultiAlternatives, Signed])
def test_nobody_is_resent_what_is_redirected(smtp, deliver, epica_mail, kind) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    headers = {"Resent-To": "one@real.example", "RESENT-CC": "two@real.example", "X-Kept": "yes"}
    message = kind("S", "Body", None, ["ann@real.example"], headers=headers)
    outbox.enqueue(message, transport="smtp")
    deliver()
    envelope, mail = arrived(smtp)
    assert envelope.recipients == tuple(STAGING)
    assert not [name for name in mail if name.lower().startswith("resent-")]
    assert "fourth" not in envelope.content.decode()
    assert mail["X-Kept"] == "yes"
    assert mail.get_payload().strip() == "Body"


def test_what_is_redirected_loses_its_esp_extra_and_the_log_says_so(epica_mail, caplog) -> None:
    epica_mail(REDIRECT_ALL_TO=STAGING)
    message = AnymailMessage("S", "B", None, ["ann@real.example"])
    message.esp_extra = {"personalizations": [{"to": [{"email": "evil@real.example"}]}]}
    prepare.restrict_recipients(message, [0])
    assert "esp_extra" not in vars(message)
    assert "without its esp_extra" in caplog.text
    assert "real.example" not in caplog.text


def test_nul_and_bare_line_ends_do_not_reach_a_server(smtp, deliver) -> None:
    class Raw(EmailMessage):
        def message(self, **arguments: Any) -> Any:
            mime = super().message(**arguments)
            mime.set_payload("a\rb\0c\r\n")
            return mime

    outbox.enqueue(Raw("S", "B\0", None, ["a@example.com"]), transport="smtp")
    outbox.enqueue(EmailMessage("S", "B\0\rC", None, ["a@example.com"]), transport="smtp")
    deliver()
    for mail in smtp.accepted:
        assert b"\0" not in mail.content
        assert mail.content.count(b"\r") == mail.content.count(b"\r\n")
    assert len(smtp.accepted) == 2


# -- allowed recipients


@pytest.mark.parametrize(
    ("pattern", "recipient", "allowed"),
    [
        ("example.com", "a@example.com", True),
        ("example.com", "Ann <A@EXAMPLE.com>", True),
        ("example.com", "a@sub.example.com", False),
        ("example.com", "a@notexample.com", False),
        ("example.com", "a@example.com.evil.org", False),
        ("*.example.com", "a@sub.example.com", True),
        ("ann@example.com", "ann@example.com", True),
        ("ann@example.com", "joann@example.com", False),
        ("*+test@example.com", "ann+test@example.com", True),
        ("example.com", '"a@example.com" <a@evil.org>', False),
        ("example.com", "a@evil.org <a@example.com>", False),
        ("example.com", "a@example.com, b@evil.org", False),
        ("bücher.example", "a@BÜCHER.example", True),
        ("bücher.example", "a@xn--bcher-kva.example", True),
        ("*@*.xn--bcher-kva.example", "a@sub.bücher.example", True),
        ("v@example.com", '"v"@example.com', True),
        ("*", "no address", False),
        ("example.com", "", False),
    ],
)
def test_a_pattern_allows_only_what_it_matches(epica_mail, pattern, recipient, allowed) -> None:
    epica_mail(ALLOWED_RECIPIENTS=[pattern])
    assert prepare.is_allowed(recipient) is allowed


def test_recipients_that_are_not_allowed_are_dropped_and_marked(smtp, deliver, epica_mail) -> None:
    epica_mail(ALLOWED_RECIPIENTS=["bob@real.example", "dan@real.example"])
    log = to_everyone()
    deliver()
    envelope, mail = arrived(smtp)
    assert envelope.recipients == ("bob@real.example", "dan@real.example")
    assert (mail["To"], mail["Cc"]) == (None, "bob@real.example")
    log.refresh_from_db()
    assert log.status == "sent"
    outcomes = dict(log.recipients.values_list("address", "outcome"))
    assert {address for address, outcome in outcomes.items() if outcome == "refused"} == {
        "ann@real.example",
        "cy@real.example",
    }
    assert "ALLOWED_RECIPIENTS" in log.recipients.get(address="ann@real.example").reply


def test_a_refusal_marks_the_recipient_the_server_refused(smtp, deliver, epica_mail) -> None:
    epica_mail(ALLOWED_RECIPIENTS=["bob@real.example", "dan@real.example"])
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    log = to_everyone()
    deliver()
    replies = dict(log.recipients.values_list("address", "reply"))
    assert "No such user" in replies["bob@real.example"]
    assert replies["dan@real.example"] == ""
    assert "ALLOWED_RECIPIENTS" in replies["cy@real.example"]


def test_a_retry_reaches_only_the_refused_allowed_recipient(
    smtp, deliver, epica_mail, travel
) -> None:
    epica_mail(ALLOWED_RECIPIENTS=["bob@real.example", "dan@real.example"])
    smtp.inject(refuse("rcpt", 451, "4.2.1 Later", times=1))
    log = to_everyone()
    deliver()
    log.refresh_from_db()
    assert log.status == "retrying"
    travel(minutes=6)
    deliver()
    assert [it.recipients for it in smtp.accepted] == [("dan@real.example",), ("bob@real.example",)]
    log.refresh_from_db()
    assert log.status == "sent"


@pytest.mark.parametrize("allowed", [[], ["example.com"]])
def test_mail_without_an_allowed_recipient_is_never_transmitted(
    smtp, deliver, epica_mail, allowed
) -> None:
    epica_mail(ALLOWED_RECIPIENTS=allowed)
    log = to_everyone()
    deliver()
    log.refresh_from_db()
    assert (log.status, log.failure_kind) == ("failed", "permanent")
    assert "ALLOWED_RECIPIENTS" in log.reply
    assert smtp.accepted == []
    assert smtp.commands["MAIL"] == 0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"REDIRECT_ALL_TO": STAGING}, tuple(STAGING)),
        ({"ALLOWED_RECIPIENTS": ["bob@real.example"]}, ("bob@real.example",)),
    ],
)
def test_recipients_added_by_a_receiver_are_restricted_too(
    smtp, deliver, epica_mail, keys, expected
) -> None:
    epica_mail(**keys)

    def add_one(message: EmailMessage, **_: Any) -> None:
        message.bcc = [*message.bcc, "more@real.example"]

    signals.before_send.connect(add_one)
    try:
        to_everyone()
        deliver()
    finally:
        signals.before_send.disconnect(add_one)
    assert [it.recipients for it in smtp.accepted] == [expected]


@pytest.mark.parametrize("key", ["REDIRECT_ALL_TO", "ALLOWED_RECIPIENTS"])
def test_partly_suppressed_mail_is_restricted_too(smtp, deliver, epica_mail, key) -> None:
    suppression.add("bob@real.example")
    epica_mail(**{key: STAGING if key == "REDIRECT_ALL_TO" else ["bob@*", "*@real.example"]})
    log = to_everyone()
    deliver()
    envelope, mail = arrived(smtp)
    if key == "REDIRECT_ALL_TO":
        assert envelope.recipients == tuple(STAGING)
        assert mail["Subject"].startswith("[to ann@real.example, cy@real.example, dan@")
    else:
        assert envelope.recipients == tuple(f"{it}@real.example" for it in ("ann", "cy", "dan"))
    outcomes = dict(log.recipients.values_list("address", "outcome"))
    assert outcomes["bob@real.example"] == "suppressed"


# -- mail bombs


def to_many(count: int) -> list[str]:
    return [f"u{number}@example.com" for number in range(count)]


@pytest.mark.parametrize("field", ["to", "cc", "bcc"])
def test_too_many_recipients_are_refused_in_the_call(smtp, epica_mail, field) -> None:
    epica_mail(MAX_RECIPIENTS=3)
    with pytest.raises(InvalidMessage, match=r"5 recipients.*MAX_RECIPIENTS.*allows 3.*each"):
        outbox.enqueue(EmailMessage("S", "B", None, **{field: to_many(5)}))
    with pytest.raises(ValueError, match="MAX_RECIPIENTS"):
        tasks.send_email_async("S", "B", None, to_many(4))
    with pytest.raises(ValueError, match="MAX_RECIPIENTS"):
        send_mail("S", "B", None, to_many(4))
    outbox.enqueue(EmailMessage("S", "B", None, to_many(3)))
    assert EmailLog.objects.count() == 1


def test_a_bulk_call_refuses_only_the_mail_bombs(smtp, epica_mail) -> None:
    epica_mail(MAX_RECIPIENTS=3, MAX_MESSAGE_BYTES=10_000)
    entry = {"subject": "S", "message": "M", "recipient_list": ["to@example.com"]}
    bombs = [{**entry, "recipient_list": to_many(4)}, {**entry, "message": "M" * 10_000}]
    batch = bulk.expand(bulk.submit([*bombs, entry]).pk)
    assert batch.accepted == 1
    assert ["MAX_RECIPIENTS" in bulk.reason(batch, 0), batch.refused[1]["index"]] == [True, 1]


def large(where: str) -> EmailMessage:
    message = EmailMultiAlternatives("S", "B" * 9000 * (where == "body"), None, ["a@example.com"])
    if where == "html":
        message.attach_alternative("<p>" * 3000, "text/html")
    if where == "attachments":
        for number in range(3):
            message.attach(f"{number}.bin", bytes([number]) * 3000, "application/octet-stream")
    return message


@pytest.mark.parametrize("where", ["body", "html", "attachments"])
def test_a_mail_that_is_too_large_is_refused_in_the_call(db, epica_mail, where) -> None:
    epica_mail(MAX_MESSAGE_BYTES=9000)
    with pytest.raises(InvalidMessage, match=r"bytes.*MAX_MESSAGE_BYTES.*allows 9000.*link"):
        outbox.enqueue(large(where))
    epica_mail(MAX_MESSAGE_BYTES=11_000)
    outbox.enqueue(large(where))
    assert EmailLog.objects.count() == 1
    assert EmailAttachment.objects.count() == (3 if where == "attachments" else 0)


def test_without_limits_anything_goes(db, epica_mail) -> None:
    epica_mail(MAX_RECIPIENTS=None, MAX_MESSAGE_BYTES=None)
    outbox.enqueue(EmailMessage("S", "B" * 30_000_000, None, to_many(1001)))
    epica_mail(MAX_RECIPIENTS=1000)
    with pytest.raises(InvalidMessage):
        outbox.enqueue(EmailMessage("S", "B", None, to_many(1001)))


# -- configuration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("REDIRECT_ALL_TO", "staging@example.com"),
        ("REDIRECT_ALL_TO", []),
        ("REDIRECT_ALL_TO", ["staging"]),
        ("REDIRECT_ALL_TO", ["a@example.com\nBcc: b@example.com"]),
        ("REDIRECT_ALL_TO", [None]),
        ("ALLOWED_RECIPIENTS", "example.com"),
        ("ALLOWED_RECIPIENTS", [""]),
        ("ALLOWED_RECIPIENTS", [1]),
        ("MAX_RECIPIENTS", 0),
        ("MAX_MESSAGE_BYTES", 1.5),
    ],
)
def test_an_invalid_restriction_is_refused(key, value) -> None:
    with pytest.raises(ImproperlyConfigured, match=key):
        conf.parse({key: value})


@pytest.mark.parametrize(
    ("keys", "debug", "ids"),
    [
        ({"REDIRECT_ALL_TO": STAGING}, False, ["epica_mail.W020"]),
        ({"ALLOWED_RECIPIENTS": []}, False, ["epica_mail.W020"]),
        ({"REDIRECT_ALL_TO": STAGING}, True, []),
        ({}, False, []),
    ],
)
def test_a_restriction_in_production_is_warned_about(
    smtp, epica_mail, settings, keys, debug, ids
) -> None:
    epica_mail(**keys)
    settings.DEBUG = debug
    found = run_checks(tags=["mail"], include_deployment_checks=True)
    assert [it.id for it in found if str(it.id).startswith("epica_mail.")] == ids


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize(
    "message_id",
    ["<x@y>\r\nX-Evil: 1", "<x@y>\nX-Evil: 1", "<x@y>\r\n\r\nX-Evil", "<x@y>\r\n.\r\nRSET",
     "<x@y>\x0bX-Evil: 1", "<x@y>\u2028X-Evil: 1", "<x@y>\x85X-Evil: 1", "(" * 250, '"' * 255],
)  # fmt: skip
def test_a_message_id_that_somebody_wrote_adds_no_header(smtp, deliver, message_id, html) -> None:
    message = EmailMultiAlternatives("S", "B", None, ["to@example.com"])
    if html:
        message.attach_alternative("<p>x</p>", "text/html")
    outbox.enqueue(message, transport="smtp")
    EmailLog.objects.update(message_id=message_id)
    deliver()
    for mail in smtp.accepted:
        assert "X-Evil" not in message_from_bytes(mail.content)
        assert b"X-Evil" not in mail.content.split(b"\r\n\r\n", 1)[1]


def test_a_mail_that_expires_once_some_have_got_it_is_sent_and_names_the_others(
    smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 450, "4.2.1 Later", recipient=lambda it: it == "c@example.com"))
    log = queue_mail("b@example.com", "c@example.com", expires_after=3600)
    other = queue_mail("c@example.com", expires_after=3600)
    deliver()
    travel(days=1)
    deliver()
    log.refresh_from_db()
    other.refresh_from_db()
    assert (log.status, log.failure_kind, other.status) == ("sent", "overdue", "expired")
    recipients = list(log.recipients.order_by("position").values_list("outcome", "reply"))
    assert recipients == [("accepted", ""), ("refused", "Not sent before it expired.")]
    assert len(smtp.accepted) == 1
