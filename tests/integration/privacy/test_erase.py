"""Erasing a person removes their address from every table, and leaves others unchanged."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.db import connection

from devservers.smtp_faults import refuse
from django_epica_mail import outbox, suppression
from django_epica_mail.delivery import claim
from django_epica_mail.messages import codec
from django_epica_mail.models import (
    DeliveryAttempt,
    DeliveryGate,
    EmailAttachment,
    EmailBatch,
    EmailEvent,
    EmailLog,
    EmailRecipient,
)
from django_epica_mail.privacy import erase as erasure
from django_epica_mail.privacy.person import Person
from django_epica_mail.queueing import bulk

ADDRESS = "ann@example.com"
NOTHING = {
    **dict.fromkeys(
        ("cancelled", "deleted", "recipients", "forgotten", "texts", "events", "suppressions"), 0
    ),
    "results": 0,
    "admin_log": 0,
    "left": [],
    "unreadable": [],
    "remains": [],
}


def queue(*to: str, body: str = "Body", **fields: Any) -> EmailLog:
    options = {name: fields.pop(name) for name in ("send_at", "idempotency_key") if name in fields}
    subject = fields.pop("subject", "Subject")
    sender = fields.pop("from_email", None)
    message = EmailMessage(subject, body, sender, list(to), **fields)
    message.attach("a.bin", b"attached", "application/zip")
    return outbox.enqueue(message, transport="smtp", **options)


def erase(**options: Any) -> dict[str, Any]:
    return erasure.erase(Person("Ann <ANN@example.com>"), **options)


def holding(needle: str = ADDRESS) -> list[str]:
    """Return the columns of all tables that contain an address."""
    found = set()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            if not table.startswith(("epica_mail_", "django_admin_log", "django_celery_results_")):
                continue
            cursor.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                for name, value in zip(names, row, strict=True):
                    if needle in str(value).lower():
                        found.add(f"{table}.{name}")
    return sorted(found)


def test_mail_to_the_person_alone_is_deleted_with_related_rows(smtp, deliver) -> None:
    for _ in range(3):
        queue(ADDRESS)
    kept = queue("bob@example.com")
    deliver()
    assert erase() == {**NOTHING, "deleted": 3}
    assert EmailLog.objects.get() == kept
    assert EmailRecipient.objects.count() == DeliveryAttempt.objects.count() == 1
    assert EmailAttachment.objects.count() == 1
    assert erase() == NOTHING


def test_waiting_mail_to_the_person_alone_is_cancelled(smtp, deliver) -> None:
    queue(f"Ann <{ADDRESS}>", bcc=[ADDRESS.upper()])
    assert erase() == {**NOTHING, "cancelled": 1, "deleted": 1}
    assert deliver() == 0
    assert smtp.accepted == []


@pytest.mark.parametrize("keys", [[], [Fernet.generate_key().decode()]])
def test_waiting_mail_to_others_too_is_sent_without_the_person(
    smtp, deliver, epica_mail, keys
) -> None:
    epica_mail(ENCRYPTION_KEYS=keys)
    log = queue(
        "Bob <bob@example.com>", f"Ann <{ADDRESS}>",
        cc=["Ann@Example.com", "cy@example.com"], bcc=["dan@example.com"],
    )  # fmt: skip
    assert erase() == {**NOTHING, "recipients": 2}
    assert holding() == []
    rows = log.recipients.values_list("position", "kind", "address")
    assert list(rows) == [
        (0, "to", "bob@example.com"),
        (1, "cc", "cy@example.com"),
        (2, "bcc", "dan@example.com"),
    ]
    assert deliver() == 1
    (arrived,) = smtp.accepted
    assert arrived.recipients == ("bob@example.com", "cy@example.com", "dan@example.com")
    assert b"ann@" not in arrived.content.lower()
    assert b"YXR0YWNoZWQ" in arrived.content, "the attachment"


def test_outcomes_stay_with_their_recipients(smtp, deliver, travel) -> None:
    smtp.inject(
        refuse("rcpt", 451, "4.2.1 Later", recipient=lambda it: it != "bob@example.com", times=2)
    )
    log = queue("bob@example.com", ADDRESS, "cy@example.com")
    deliver()
    assert erase()["recipients"] == 1
    assert list(log.recipients.values_list("position", "address", "outcome")) == [
        (0, "bob@example.com", "accepted"),
        (1, "cy@example.com", ""),
    ]
    travel(minutes=6)
    deliver()
    assert [it.recipients for it in smtp.accepted] == [("bob@example.com",), ("cy@example.com",)]


def test_mail_that_only_the_person_still_awaits_has_been_sent_to_the_others(smtp, deliver) -> None:
    smtp.inject(refuse("rcpt", 451, "4.2.1 Later", recipient=lambda it: it == ADDRESS, times=1))
    log = queue("bob@example.com", ADDRESS)
    deliver()
    assert erase() == {**NOTHING, "cancelled": 1, "recipients": 1, "forgotten": 1}
    log.refresh_from_db()
    assert (log.status, log.envelope) == ("sent", "")
    assert log.recipients.get().address == "bob@example.com"
    assert holding() == []


def test_sent_mail_to_others_too_loses_the_person_and_content(smtp, deliver) -> None:
    log = queue("bob@example.com", ADDRESS, subject=f"For {ADDRESS}", body=f"Dear {ADDRESS}")
    deliver()
    assert erase() == {**NOTHING, "recipients": 1, "forgotten": 1, "texts": 1}
    assert holding() == []
    log.refresh_from_db()
    assert (log.status, log.subject, log.envelope) == ("sent", "For [erased]", "")
    assert not EmailAttachment.objects.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"from_email": f"Ann <{ADDRESS}>"},
        {"reply_to": [ADDRESS]},
        {"subject": f"Sign-up of {ADDRESS}"},
        {"body": f"New customer:\n{ADDRESS}"},
        {"headers": {"X-Customer": ADDRESS}},
        {"idempotency_key": f"welcome-{ADDRESS}"},
    ],
)
def test_mail_from_or_about_the_person_is_erased_after_sending(smtp, deliver, fields) -> None:
    log = queue("shop@example.com", **fields)
    done = erase()
    assert done["left"] == ([] if "idempotency_key" in fields else [str(log.pk)])
    assert deliver() == 1
    assert smtp.accepted[-1].recipients == ("shop@example.com",)
    assert erase()["left"] == []
    assert holding() == []
    log.refresh_from_db()
    assert log.status == "sent"
    assert log.idempotency_key is None


def test_mail_held_by_a_worker_is_left_and_reported(smtp, queue_mail) -> None:
    logs = [queue_mail(ADDRESS), queue_mail(ADDRESS, "bob@example.com")]
    claim.claim("emails")
    done = erase()
    assert done == {**NOTHING, "left": [str(log.pk) for log in logs]}
    assert EmailRecipient.objects.filter(address=ADDRESS).count() == 2


def test_a_claim_between_reading_and_writing_wins(smtp, monkeypatch) -> None:
    log = queue(ADDRESS, "bob@example.com")
    without = codec.without_recipients

    def claim_meanwhile(*arguments: Any) -> str:
        claim.claim("emails")
        return without(*arguments)

    monkeypatch.setattr(codec, "without_recipients", claim_meanwhile)
    assert erase()["left"] == [str(log.pk)]
    log.refresh_from_db()
    assert ADDRESS in log.envelope
    assert log.recipients.count() == 2


def test_the_address_is_erased_from_servers_replies(smtp, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, f"5.1.1 <{ADDRESS}>: no such user", times=2))
    other = queue("bob@example.com")
    both = queue("cy@example.com", "dan@example.com")
    deliver()
    assert "epica_mail_emaillog.reply" in holding()
    erase()
    assert holding() == []
    other.refresh_from_db()
    assert other.reply == "5.1.1 <[erased]>: no such user"
    assert both.recipients.get(address="cy@example.com").reply == other.reply
    assert DeliveryAttempt.objects.get(email=other).reply == other.reply


def test_a_bulk_call_loses_the_address_once_expanded(smtp, deliver) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": [ADDRESS]}
    batch = bulk.submit([entry, {**entry, "cc": ADDRESS}])
    assert erase()["left"] == [str(batch.pk)]
    bulk.expand(batch.pk)
    assert ADDRESS in bulk.reason(EmailBatch.objects.get(), 1)
    assert erase() == {**NOTHING, "cancelled": 1, "deleted": 1, "texts": 1}
    assert holding() == []


def test_unreadable_mail_is_reported_and_left_unchanged(smtp, deliver, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    log = queue("bob@example.com", ADDRESS)
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    done = erase()
    assert (done["left"], done["unreadable"]) == ([str(log.pk)], [str(log.pk)])
    assert log.recipients.count() == 2


def test_content_that_was_moved_is_not_sealed_again(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    victims = queue("bob@example.com", body=f"Pay to {ADDRESS}")
    entry = {"subject": "S", "message": "M", "recipient_list": [ADDRESS], "from_email": "\n"}
    batch = bulk.expand(bulk.submit([entry]).pk)
    batch.refused[0]["reason"] = victims.envelope
    batch.save(update_fields=["refused"])
    own = queue(ADDRESS, "cy@example.com")
    EmailLog.objects.filter(pk=own.pk).update(envelope=victims.envelope)
    done = erase()
    assert done["unreadable"] == [str(own.pk), str(batch.pk)]
    own.refresh_from_db()
    assert own.envelope == victims.envelope, "unchanged, so not sent"
    batch.refresh_from_db()
    assert batch.refused[0]["reason"] == victims.envelope, "unchanged, so not shown"


def test_events_are_deleted_and_suppressions_keep_only_a_digest(smtp, deliver) -> None:
    log = queue("bob@example.com", ADDRESS)
    deliver()
    for number, address in enumerate((ADDRESS, "bob@example.com")):
        EmailEvent.objects.create(
            email=log,
            key=str(number),
            kind="bounced",
            at=log.created_at,
            created_at=log.created_at,
            source="test",
            address=address,
            reply=f"reported by {ADDRESS}",
            url="https://example.com/?of=ann%40example.com",
        )
    suppression.add(ADDRESS, note=f"asked for by {ADDRESS}")
    suppression.add("bob@example.com")
    done = erase()
    assert (done["events"], done["suppressions"]) == (1, 1)
    assert holding() == []
    assert holding("ann%40") == []
    assert EmailEvent.objects.get().address == "bob@example.com"
    assert suppression.is_suppressed(ADDRESS), "the digest still suppresses"
    assert suppression.is_suppressed("bob@example.com")
    again = queue(ADDRESS)
    deliver()
    again.refresh_from_db()
    assert again.status == "suppressed"


def test_a_similar_address_is_not_touched(smtp, deliver) -> None:
    log = queue("joann@example.com", "ann@example.com.tr", body="joann@example.com")
    deliver()
    assert erase() == NOTHING
    log.refresh_from_db()
    assert log.envelope
    assert log.recipients.count() == 2


def test_a_dry_run_reports_the_same_and_changes_nothing(smtp, deliver) -> None:
    queue(ADDRESS)
    queue(ADDRESS, "bob@example.com")
    before = list(EmailLog.objects.order_by("pk").values())
    planned = erase(dry_run=True)
    assert planned == {**NOTHING, "cancelled": 1, "deleted": 1, "recipients": 1}
    assert list(EmailLog.objects.order_by("pk").values()) == before
    assert EmailRecipient.objects.filter(address=ADDRESS).count() == 2
    assert erase() == planned


def test_progress_counts_examined_mails(smtp, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.privacy.person.CHUNK", 2)
    for _ in range(5):
        queue("bob@example.com")
    seen: list[tuple[int, int]] = []
    erase(advance=lambda *at: seen.append(at))
    assert seen == [(2, 5), (4, 5), (5, 5)]


# -- the command


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("epica_mail", *arguments, stdout=output, stderr=StringIO())
    return output.getvalue()


@pytest.mark.parametrize(("answer", "left"), [("yes", 0), ("no", 1), ("", 1)])
def test_the_command_asks_before_it_erases(smtp, queue_mail, monkeypatch, answer, left) -> None:
    queue_mail(ADDRESS)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    if left:
        with pytest.raises(CommandError, match="Nothing was erased"):
            run("erase", ADDRESS)
    else:
        assert "deleted" in run("erase", ADDRESS)
    assert EmailLog.objects.count() == left


def test_the_command_exits_with_1_while_something_is_left(smtp, queue_mail) -> None:
    queue_mail(ADDRESS)
    assert json.loads(run("erase", ADDRESS, "--dry-run", "--json"))["deleted"] == 1
    assert EmailLog.objects.count() == 1
    claim.claim("emails")
    with pytest.raises(SystemExit):
        run("erase", ADDRESS, "--noinput")
    with pytest.raises(CommandError, match="not an e-mail address"):
        run("erase", "ann", "--noinput")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("reply", "550 user=3Dann@example.com unknown"),
        ("reply", "550 ann=40example.com unknown"),
        ("message_id", "<ann@example.com>"),
        ("from_email", '"ann@example.com" <shop@example.com>'),
        ("subject", "For ann@example.com\u200b"),
        ("subject", "For ann\u200b@example.com\u00a0"),
        ("subject", "=?utf-8?b?YW5uQGV4YW1wbGUuY29t?="),
        ("worker", "x" * 246 + " ann@exam"),
    ],
)
def test_the_address_is_erased_from_a_mail_to_others_however_it_is_written(
    smtp, deliver, column, text
) -> None:
    log = queue("bob@example.com")
    deliver()
    EmailLog.objects.update(**{column: text})
    done = erase()
    assert (done["texts"], done["left"], done["remains"]) == (1, [], [])
    log.refresh_from_db()
    assert "[erased]"[: 255 - 246] in getattr(log, column)
    assert "ann" not in getattr(log, column).lower()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("550 refus=E9=0D=0Aann@example.com", "550 refus=E9=0D=0A[erased]"),
        (
            "https://x.example/?q=caf%E9%20ann%40example.com",
            "https://x.example/?q=caf%E9%20[erased]",
        ),
        ("%FF%61%6E%6E%40%65%78%61%6D%70%6C%65%2E%63%6F%6D", "%FF[erased]"),
        ('550 <"ann"@example.com> unknown', "550 <[erased]> unknown"),
        ("=?x-unknown?b?YW5uQGV4YW1wbGUuY29t?=", "[erased]"),
    ],
)
def test_a_byte_that_is_no_utf_8_or_a_quote_hides_no_address(smtp, deliver, text, left) -> None:
    log = queue("bob@example.com")
    deliver()
    EmailLog.objects.update(reply=text)
    done = erase()
    assert (done["texts"], done["left"], done["remains"]) == (1, [], [])
    log.refresh_from_db()
    assert log.reply == left


def test_what_may_be_no_byte_but_a_longer_address_is_listed(smtp, deliver) -> None:
    log = queue("bob@example.com")
    deliver()
    EmailLog.objects.update(reply="550 to=ADann@example.com unknown")
    assert erase()["remains"] == [f"epica_mail.EmailLog.reply {log.pk}"]
    log.refresh_from_db()
    assert log.reply == "550 to=ADann@example.com unknown"


@pytest.mark.parametrize("encoded", ["ann@example.com", "ann%40example.com", "ann%2540example.com"])
def test_the_address_is_erased_from_links_that_others_followed(smtp, deliver, encoded) -> None:
    log = queue("bob@example.com")
    deliver()
    EmailEvent.objects.create(
        email=log, key="k", kind="clicked", at=log.created_at, created_at=log.created_at,
        source="epica_mail", url=f"https://x.example/?next=%2Fto%3D{encoded}",
    )  # fmt: skip
    assert erase()["remains"] == []
    assert "ann" not in EmailEvent.objects.get().url


def test_what_may_be_a_longer_address_is_listed_and_the_command_fails(smtp, deliver) -> None:
    log = queue("mary.ann@example.com")
    deliver()
    EmailLog.objects.update(subject="mary.ann@example.com", reply="bounce_ann@example.com.eml")
    done = erase()
    assert done["remains"] == [f"epica_mail.EmailLog.reply {log.pk}"], "Mary is somebody else"
    log.refresh_from_db()
    assert (log.subject, log.reply) == ("mary.ann@example.com", "bounce_ann@example.com.eml")
    with pytest.raises(SystemExit):
        call_command("epica_mail", "erase", ADDRESS, noinput=True, stdout=StringIO())


def test_a_file_name_with_the_address_is_listed(smtp, deliver) -> None:
    queue("bob@example.com")
    deliver()
    EmailAttachment.objects.update(filename="invoice_ann@example.com.pdf")
    (left,) = erase()["remains"]
    assert left == f"epica_mail.EmailAttachment.filename {EmailAttachment.objects.get().pk}"


@pytest.mark.parametrize(
    ("mailed", "erased"),
    [
        ('"ann"@example.com', ADDRESS),
        ("ann@example.com\u200b", ADDRESS),
        ("ann@B\u00fccher.example", "ann@xn--bcher-kva.example"),
        ('"x q"@example.com', '"x q"@Example.com'),
    ],
)
def test_a_person_is_erased_by_any_spelling_of_the_address(smtp, deliver, mailed, erased) -> None:
    queue(mailed)
    queue(mailed, "bob@example.com")
    deliver()
    suppression.add(mailed)
    done = erasure.erase(Person(erased))
    assert (done["deleted"], done["recipients"], done["suppressions"]) == (1, 1, 1)
    assert (done["left"], done["remains"]) == ([], [])
    assert EmailRecipient.objects.get().address == "bob@example.com"
    assert suppression.is_suppressed(mailed)


def test_tagged_addresses_are_erased_if_asked_for(smtp, deliver) -> None:
    queue("ann+news@example.com")
    queue("annabel@example.com", body="ann+shop@example.com")
    deliver()
    assert erase()["deleted"] == 0
    done = erasure.erase(Person(ADDRESS, tagged=True))
    assert (done["deleted"], done["forgotten"], done["remains"]) == (1, 1, [])


def test_a_recipient_that_somebody_added_to_a_mail_does_not_delete_it(
    smtp, deliver, epica_mail
) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    victims = queue("bob@example.com")
    deliver()
    added = EmailRecipient.objects.create(email=victims, position=1, kind="to", address=ADDRESS)
    done = erase()
    assert (done["deleted"], done["forgotten"]) == (0, 0)
    assert done["remains"] == [f"epica_mail.EmailRecipient.address {added.pk}"]
    assert victims.message().body


def test_text_that_looks_like_a_header_word_stops_nobody(smtp) -> None:
    queue("bob@example.com", body="A visitor wrote: =?utf-8?b?abcde?=")
    queue(ADDRESS)
    call_command("epica_mail", "export", ADDRESS, stdout=StringIO())
    assert erase()["deleted"] == 1
    assert holding() == []


def test_an_address_that_differs_in_accents_is_somebody_elses(smtp) -> None:
    other = "änn@example.com"
    both, theirs = queue(ADDRESS, cc=["bob@example.com"]), queue("bob@example.com")
    EmailRecipient.objects.filter(address="bob@example.com").update(address=other)
    EmailLog.objects.update(status="sent", pending=None)
    suppression.add(other)
    report = erase()
    assert (report["deleted"], report["recipients"], report["suppressions"]) == (0, 1, 0)
    assert {it.pk for it in EmailLog.objects.all()} == {both.pk, theirs.pk}
    rows = EmailRecipient.objects.values_list("address", flat=True)
    assert sorted(rows) == [other, other]


def test_rows_that_would_become_alike_do_not_end_an_erasure(smtp, queue_mail) -> None:
    mail = queue_mail("other@example.net")
    EmailLog.objects.filter(pk=mail.pk).update(
        status="sent", pending=None, reply="550 ann@example.com unknown"
    )
    for name in ("ann@example.com", "[erased]"):
        DeliveryGate.objects.create(scope="queue", name=name)
    done = erasure.erase(Person("ann@example.com"))
    mail.refresh_from_db()
    assert "ann@" not in mail.reply
    assert any("DeliveryGate" in it for it in done["remains"])
