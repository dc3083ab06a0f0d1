"""The search of the list of e-mails: by whatever people have of one."""

from __future__ import annotations

import pytest
from django.utils import timezone

from django_epica_mail.models import EmailEvent
from tests.integration.admin.pages import html_of


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("ayse@example.com", ["Wanted"]),
        ("AYSE@Example.COM", ["Wanted"]),
        ("ayse@", ["Wanted"]),
        ("ays*", ["Wanted"]),
        ("@example.com", ["Wanted"]),
        ("@example.org", ["Other one"]),
        ("wanted", ["Wanted"]),
        ("one other", ["Other one"]),
        ("100%", []),
        ("nobody@example.com", []),
        ("<nothing@example.com>", []),
        ("ays", ["Wanted"]),
        ("example.org", ["Other one"]),
        ("@nowhere.example", []),
        ("00000000-0000-7000-8000-000000000000", []),
    ],
)
def test_the_form_of_a_term_decides_what_is_searched(listed, queue_mail, term, found) -> None:
    queue_mail("ayse@example.com", subject="Wanted")
    queue_mail("mehmet@example.org", subject="Other one")
    assert listed(q=term) == found


@pytest.mark.parametrize(
    ("mailed", "term"),
    [
        ("v@example.com", '"v"@example.com'),
        ('"john doe"@example.com', '"John Doe"@example.com'),
        ("ann@bücher.example", "Ann@xn--bcher-kva.example"),
        ("ann@bücher.example", "ann@BÜCHER.example"),
        ("ann@bücher.example", "@bücher.example"),
        ("ann@example.com", "Ann Lee <ann@example.com>"),
    ],
)
def test_an_address_is_found_in_any_spelling(listed, queue_mail, mailed, term) -> None:
    queue_mail(mailed, subject="Wanted")
    queue_mail("other@example.org", subject="Other one")
    assert listed(q=term) == ["Wanted"]


def test_a_mail_is_found_by_its_id_and_its_message_id(listed, queue_mail) -> None:
    wanted = queue_mail(subject="Wanted")
    queue_mail()
    assert listed(q=str(wanted.pk)) == ["Wanted"]
    assert listed(q=wanted.pk.hex) == ["Wanted"], "an id without dashes"
    assert listed(q=f" {wanted.message_id} ") == ["Wanted"]


def test_an_address_with_much_mail_is_searched_in_the_newest(
    listed, queue_mail, monkeypatch
) -> None:
    monkeypatch.setattr("django_epica_mail.admin.changelist.search._MOST_LOOKED_UP", 3)
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 4)
    for number in range(6):
        queue_mail("busy@example.com", subject=f"busy {number}")
    queue_mail("calm@example.com", subject="calm")
    assert listed(q="busy@example.com") == ["busy 5", "busy 4", "busy 3"]
    assert listed(q="calm@example.com") == ["calm"]


def test_subjects_are_searched_in_the_newest_mail(listed, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.base.WINDOW", 2)
    for number in range(4):
        queue_mail(subject=f"Order {number}")
    assert listed(q="order") == ["Order 3", "Order 2"]


def test_brackets_around_a_message_id_may_be_left_out(listed, queue_mail) -> None:
    wanted = queue_mail(subject="Wanted")
    queue_mail()
    assert listed(q=wanted.message_id.strip("<>")) == ["Wanted"]


@pytest.mark.parametrize("term", ["0100018c-ses", "<0100018c-ses>"])
def test_a_mail_is_found_by_the_id_that_its_provider_gave_it(listed, queue_mail, term) -> None:
    wanted, reported = queue_mail(subject="Wanted"), queue_mail(subject="Reported")
    wanted.delivery_attempts.create(
        number=1, transport="ses", created_at=timezone.now(), provider_id="0100018c-ses"
    )
    now = timezone.now()
    EmailEvent.objects.create(
        email=reported, key="1", kind="delivered", at=now, created_at=now, provider_id="other-id"
    )
    assert listed(q=term) == ["Wanted"]
    assert listed(q="other-id") == ["Reported"]


def test_a_term_that_is_an_id_of_a_provider_is_found_although_it_looks_like_ours(
    listed, queue_mail
) -> None:
    term = "00000000-0000-4000-8000-000000000000"
    queue_mail(subject="Wanted").delivery_attempts.create(
        number=1, transport="postmark", created_at=timezone.now(), provider_id=term
    )
    assert listed(q=term) == ["Wanted"]


def test_a_word_is_found_in_subjects_and_at_the_beginning_of_addresses(listed, queue_mail) -> None:
    queue_mail("fatma@example.com", subject="An address")
    queue_mail("other@example.com", subject="Hello Fatma")
    assert listed(q="fatma") == ["Hello Fatma", "An address"]


def test_filters_narrow_a_search(listed, queue_mail) -> None:
    mail = queue_mail(subject="Wanted")
    assert listed(q=str(mail.pk), status="queued") == ["Wanted"]
    assert listed(q=str(mail.pk), status="sent") == []


@pytest.mark.parametrize(
    ("term", "number"),
    [("nobody", 2), ("no.body", 3), ("nobody@example.com", 5), ("two words", 1), ("nob*", 3)],
)
def test_a_vain_search_says_what_it_tried(superuser, queue_mail, term, number) -> None:
    queue_mail()
    html = html_of(superuser, "emaillog_changelist", q=term)
    notice = html.partition('<div class="epica-notice"')[2].partition("</div>")[0]
    assert f"“{term}”" in notice
    assert notice.count("<li>") == number


def test_a_term_is_escaped_when_nothing_is_found(superuser, queue_mail) -> None:
    queue_mail()
    assert "<script>alert" not in html_of(superuser, "emaillog_changelist", q="<script>alert(1)")
