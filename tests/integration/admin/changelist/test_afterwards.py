"""What happened to e-mails after they were sent: badge, filter and notices."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from django_epica_mail.admin.changelist import afterwards
from django_epica_mail.clock import uuid7
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.tracking.events import UNAUTHENTICATED
from tests.integration.admin.pages import html_of

LIST = "emaillog_changelist"


def record(mail: EmailLog, kind: str, **values: Any) -> EmailEvent:
    """Store an event of an e-mail."""
    now = timezone.now()
    return EmailEvent.objects.create(
        email=mail, key=str(uuid7()), kind=kind, at=now, created_at=now, source="ses", **values
    )


def outcome_of(mail: EmailLog) -> str:
    found = afterwards.of_each([mail.pk], "default")
    return found[mail.pk].kind.value if mail.pk in found else ""


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        (["delivered", "opened"], "opened"),
        (["bounced", "delivered", "opened"], "bounced"),
        (["complained", "bounced"], "complained"),
        (["deferred", "delivered"], "delivered"),
        (["accepted"], ""),
        ([], ""),
    ],
)
def test_of_several_outcomes_the_gravest_is_shown(queue_mail, kinds, shown) -> None:
    mail = queue_mail()
    for kind in kinds:
        record(mail, kind)
    assert outcome_of(mail) == shown


def test_what_a_machine_opened_or_anybody_may_have_posted_does_not_count(queue_mail) -> None:
    mail = queue_mail()
    record(mail, "opened", is_machine=True)
    record(mail, "bounced", reason=UNAUTHENTICATED)
    assert outcome_of(mail) == ""
    assert list(afterwards.bad_news(mail)) == []
    record(mail, "bounced", is_machine=True)
    assert outcome_of(mail) == "bounced"


def test_the_list_has_a_second_badge(superuser, queue_mail) -> None:
    record(queue_mail(), "bounced")
    html = html_of(superuser, LIST)
    assert (
        '<span class="epica-badge epica-queued">queued</span> '
        '<span class="epica-badge epica-failed">bounced</span>'
    ) in html


def test_the_page_of_an_e_mail_has_it_beside_its_status(viewer, queue_mail) -> None:
    mail = queue_mail()
    record(mail, "opened")
    heading = html_of(viewer, "emaillog_change", mail.pk).partition("</h1>")[0]
    assert heading.endswith(
        '>queued</span> <span id="epica-afterwards" data-part>'
        '<span class="epica-badge epica-sent">opened</span></span>'
    )
    heading = html_of(viewer, "emaillog_change", queue_mail().pk).partition("</h1>")[0]
    assert heading.endswith('<span id="epica-afterwards" data-part></span>')


def test_the_list_is_filtered_by_what_happened(listed, queue_mail) -> None:
    for kind in ("bounced", "opened", "delivered"):
        record(queue_mail(subject=kind), kind)
    queue_mail(subject="nothing")
    assert listed(after="bounced") == ["bounced"]
    assert listed(after="opened") == ["opened"]
    assert listed(after="accepted") == []
    assert listed(after="nonsense") == []


def test_bad_news_stand_on_top_of_the_page(viewer, queue_mail) -> None:
    mail = queue_mail()
    record(mail, "delivered", address="first@example.com")
    record(mail, "bounced", address="second@example.com", reply="550 <mailbox> full")
    top = html_of(viewer, "emaillog_change", mail.pk).partition('id="epica-timeline"')[0]
    assert "<strong>Bounced</strong>: second@example.com" in top
    assert "550 &lt;mailbox&gt; full" in top
    assert "sent it back" in top
    assert "first@example.com" not in top
