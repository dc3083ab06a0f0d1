"""What the page of an e-mail advises, for each way not to arrive."""

from __future__ import annotations

import pytest

from django_epica_mail.admin.mail_page.remedies import remedy, remedy_of
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.retry import Kind
from tests.integration.admin.pages import html_of


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_of_failure_has_a_remedy(kind) -> None:
    assert remedy(EmailLog(status=Status.FAILED, failure_kind=kind))


@pytest.mark.parametrize("status", set(Status) - {Status.FAILED, Status.RETRYING, Status.UNKNOWN})
def test_what_did_not_fail_wants_none(status) -> None:
    wants = bool(remedy(EmailLog(status=status, failure_kind=Kind.TRANSIENT)))
    assert wants == (status in (Status.EXPIRED, Status.SUPPRESSED))


@pytest.mark.parametrize(
    ("status", "kind", "code", "reply", "words"),
    [
        ("failed", "permanent", 550, "5.1.1 No such user", "does not exist"),
        ("failed", "permanent", 554, "5.7.1 blocked", "SPF, DKIM, DMARC"),
        ("failed", "permanent", 552, "too big", "size"),
        ("retrying", "transient", 451, "later", "by itself"),
        ("failed", "transient", 451, "later", "used up"),
        ("unknown", "worker_lost", None, "", "Message-ID"),
    ],
)
def test_the_remedy_fits_the_reply(status, kind, code, reply, words) -> None:
    mail = EmailLog(status=status, failure_kind=kind, failure_code=code, reply=reply)
    assert words in str(remedy(mail))


def test_only_bad_news_want_a_remedy() -> None:
    bad = {kind for kind in EmailEvent.Kind if remedy_of(EmailEvent(kind=kind))}
    assert bad == {"bounced", "rejected", "failed", "complained"}


def test_the_page_says_what_to_do(viewer, queue_mail) -> None:
    mail = queue_mail()
    EmailLog.objects.filter(pk=mail.pk).update(status="failed", failure_kind="message")
    assert "What to do:" in html_of(viewer, "emaillog_change", mail.pk)
