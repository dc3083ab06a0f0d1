"""An export contains everything stored about a person, and no other person's address."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.management import call_command
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import outbox, suppression
from django_epica_mail.models import EmailEvent, EmailLog, EmailRecipient
from django_epica_mail.privacy import export as exporting
from django_epica_mail.privacy.person import Person
from django_epica_mail.queueing import bulk

ADDRESS = "ann@example.com"


def queue(*to: str, body: str = "Body", keep_content: str | None = None, **fields: Any) -> EmailLog:
    message = EmailMessage(fields.pop("subject", "Subject"), body, None, list(to), **fields)
    message.attach("a.bin", b"attached", "application/zip")
    return outbox.enqueue(message, transport="smtp", keep_content=keep_content)


def export(**options: Any) -> dict[str, Any]:
    """Return the export as JSON shows it."""
    found = exporting.export(Person("Ann <ANN@example.com>"), **options)
    shown: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return shown


def test_an_envelope_that_was_moved_to_a_persons_mail_is_not_shown(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    victims, own = queue("victim@example.com", body="Reset: s3cret"), queue(ADDRESS)
    EmailLog.objects.filter(pk=own.pk).update(envelope=victims.envelope)
    found = export()
    assert "s3cret" not in json.dumps(found)
    assert found["unreadable"] == [str(own.pk)]


def test_a_person_gets_their_mail_without_other_peoples_addresses(
    smtp, deliver, epica_mail
) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    queue(ADDRESS, body="Dear Ann", subject="Yours")
    queue(ADDRESS, bcc=["secret@example.com"], body="To many")
    queue("shop@example.com", reply_to=[ADDRESS], body="A question")
    queue("other@example.com", body=f"About {ADDRESS}: private")
    queue("unrelated@example.com", body="nothing")
    deliver()
    found = export()
    yours, many, asked, about = found["mails"]
    assert (yours["roles"], yours["subject"], yours["content"]["body"]) == (
        ["to"], "Yours", "Dear Ann",
    )  # fmt: skip
    assert yours["recipient"] == [
        {"kind": "to", "address": ADDRESS, "outcome": "", "code": None, "reply": ""}
    ]
    assert yours["attempts"][0]["reply"]
    assert yours["content"]["attachments"] == [
        {"filename": "a.bin", "mimetype": "application/zip", "size": 8}
    ]
    assert many["attempts"][0]["reply"] == "", "it may quote another recipient"
    assert (asked["roles"], asked["content"]["body"]) == (["reply-to"], "A question")
    assert about["roles"] == ["mentioned"]
    assert "content" not in about
    for other in ("secret@", "other@", "unrelated@", "private"):
        assert other not in json.dumps(found)


def test_a_reply_that_quotes_the_person_is_part_of_the_export(smtp, deliver) -> None:
    smtp.inject(
        refuse("rcpt", 550, f"5.1.1 <{ADDRESS}>: unknown", recipient=lambda it: it == ADDRESS)
    )
    queue(ADDRESS, bcc=["secret@example.com"])
    deliver()
    (mail,) = export()["mails"]
    assert mail["recipient"][0]["outcome"] == "refused"
    assert ADDRESS in mail["recipient"][0]["reply"]
    assert "secret@" not in json.dumps(mail)


def test_alternatives_are_exported_with_their_type(smtp) -> None:
    message = EmailMultiAlternatives("Subject", "Text", None, [ADDRESS])
    message.attach_alternative("<p>HTML</p>", "text/html")
    outbox.enqueue(message, transport="smtp")
    (mail,) = export()["mails"]
    assert mail["content"]["alternatives"] == [{"type": "text/html", "content": "<p>HTML</p>"}]


def test_deleted_content_is_exported_as_none(smtp, deliver, epica_mail) -> None:
    epica_mail(KEEP_CONTENT="until_sent")
    queue(ADDRESS)
    deliver()
    (mail,) = export()["mails"]
    assert (mail["status"], mail["content"]) == ("sent", None)


def test_unreadable_mail_is_listed_without_its_content(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    yours = queue(ADDRESS)
    other = queue("other@example.com")
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    found = export()
    assert found["unreadable"] == [str(yours.pk), str(other.pk)]
    assert [(it["id"], it["content"]) for it in found["mails"]] == [(str(yours.pk), None)]


def test_unexpanded_bulk_calls_are_listed(smtp) -> None:
    entry = {"subject": "S", "message": "M", "recipient_list": [ADDRESS]}
    batch = bulk.submit([entry])
    bulk.submit([{**entry, "recipient_list": ["other@example.com"]}])
    assert export()["unfinished_batches"] == [str(batch.pk)]
    bulk.expand(batch.pk)
    found = export()
    assert found["unfinished_batches"] == []
    assert len(found["mails"]) == 1


def test_events_and_suppressions_of_the_person_are_exported(smtp) -> None:
    log = queue(ADDRESS, "bob@example.com")
    for number, address in enumerate((ADDRESS, "bob@example.com")):
        EmailEvent.objects.create(
            email=log,
            key=str(number),
            kind="bounced",
            at=log.created_at,
            created_at=log.created_at,
            source="test",
            address=address,
        )
        suppression.add(address)
    found = export()
    assert [(it["kind"], it["address"]) for it in found["events"]] == [("bounced", ADDRESS)]
    assert [(it["reason"], it["address"]) for it in found["suppressions"]] == [("manual", ADDRESS)]


def test_the_admins_log_is_exported_where_it_names_the_person(smtp) -> None:
    user = User.objects.create_user("clerk")
    for model, text in ((EmailLog, ADDRESS), (EmailLog, "other@example.com"), (User, ADDRESS)):
        LogEntry.objects.create(
            user=user,
            content_type=ContentType.objects.get_for_model(model),
            object_id="1",
            object_repr=f"Mail to {text}",
            action_flag=CHANGE,
            action_time=timezone.now(),
        )
    assert [it["object_repr"] for it in export()["admin_log"]] == [f"Mail to {ADDRESS}"]


def test_without_django_celery_results_there_are_no_results(smtp) -> None:
    queue(ADDRESS)
    assert export()["results"] == []


def test_progress_counts_examined_mails(smtp, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.privacy.person.CHUNK", 2)
    for _ in range(3):
        queue("bob@example.com")
    seen: list[tuple[int, int]] = []
    export(advance=lambda *at: seen.append(at))
    assert seen == [(2, 3), (3, 3)]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_command_exports_json(smtp, queue_mail, options) -> None:
    def run(address: str) -> dict[str, Any]:
        output = StringIO()
        call_command("epica_mail", "export", address, *options, stdout=output, stderr=StringIO())
        shown: dict[str, Any] = json.loads(output.getvalue())
        return shown

    log = queue_mail(ADDRESS)
    assert [it["id"] for it in run(ADDRESS)["mails"]] == [str(log.pk)]
    assert run("nobody@example.com")["mails"] == []


@pytest.mark.parametrize("spelling", ['"ann"@Example.com', "ann@example.com\u200b"])
def test_a_person_is_exported_by_any_spelling_and_with_tags_if_asked_for(smtp, spelling) -> None:
    queue(spelling)
    queue("ann+news@example.com")
    assert len(export()["mails"]) == 1
    assert len(exporting.export(Person(spelling, tagged=True))["mails"]) == 2


FORGED = [
    ("an added recipient", {}),
    ("the only recipient renamed", {"address": ADDRESS}),
    ("the sender renamed", {"from_email": f"Ann <{ADDRESS}>"}),
]


@pytest.mark.parametrize(("what", "change"), FORGED, ids=[it[0] for it in FORGED])
def test_a_row_that_names_somebody_elses_mail_does_not_show_it(
    smtp, epica_mail, what, change
) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    log = queue("victim@example.com", body="Reset: s3cret", subject="Hidden", keep_content="never")
    if not change:
        EmailRecipient.objects.create(email=log, position=1, kind="to", address=ADDRESS)
    elif "address" in change:
        EmailRecipient.objects.update(**change)
    else:
        EmailLog.objects.update(**change)
    found = export()
    assert found["mails"] == []
    assert "s3cret" not in json.dumps(found)


def test_a_row_that_hides_a_persons_mail_hides_nothing(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    queue(ADDRESS, "bob@example.com", cc=["Cy <cy@example.com>"])
    EmailRecipient.objects.all().delete()
    (mail,) = export()["mails"]
    assert (mail["roles"], mail["content"]["body"]) == (["to"], "Body")


def test_the_attachments_of_another_mail_are_not_listed(smtp) -> None:
    own = queue(ADDRESS)
    message = EmailMessage("S", "B", None, ["victim@example.com"])
    message.attach("secret-divorce.pdf", b"other", "application/pdf")
    victims = outbox.enqueue(message, transport="smtp")
    own.attachments.add(*victims.attachments.all())
    (mail,) = export()["mails"]
    assert [it["filename"] for it in mail["content"]["attachments"]] == ["a.bin"]


def test_a_mail_that_is_deleted_meanwhile_does_not_end_an_export(smtp) -> None:
    gone, kept = queue(ADDRESS), queue(ADDRESS)

    def clean_up(done: int, total: int) -> None:
        EmailLog.objects.filter(pk=gone.pk).delete()

    assert [it["id"] for it in export(advance=clean_up)["mails"]] == [str(kept.pk)]
