"""The reasons why bulk calls refused entries: walked once, by one rule for what cannot be read."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet

from django_epica_mail.exceptions import MissingKey
from django_epica_mail.messages import encryption
from django_epica_mail.models import EmailBatch
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.reasons import Reasons, change_reasons
from django_epica_mail.privacy.reencrypt import reencrypt
from django_epica_mail.queueing import bulk

pytestmark = pytest.mark.django_db
BAD = {"subject": "S", "message": "M", "recipient_list": ["to@example.com"], "from_email": "a@b\n"}


def refused(count: int) -> EmailBatch:
    return bulk.expand(bulk.submit([BAD] * count).pk)


def test_each_reason_is_changed_with_its_place(smtp) -> None:
    batch, seen = refused(2), []

    def change(stored: str, place: str) -> str:
        seen.append(place)
        return "new" if place.endswith("/1") else stored

    assert list(change_reasons(change, "default")) == [Reasons(batch.pk, 1, 1, 0)]
    assert seen == [encryption.refusal_of(batch.pk, index) for index in (0, 1)]
    assert bulk.reason(EmailBatch.objects.get(), 1) == "new"


def test_what_cannot_be_read_is_left_and_counted(smtp) -> None:
    batch = refused(2)
    before = batch.refused

    def change(stored: str, place: str) -> str:
        if place.endswith("/0"):
            raise MissingKey
        return "new"

    assert list(change_reasons(change, "default")) == [Reasons(batch.pk, 1, 0, 1)]
    batch.refresh_from_db()
    assert batch.refused == [before[0], {**before[1], "reason": "new"}]


def test_a_lost_key_is_reported_by_erase_and_reencrypt_alike(smtp, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    batch = refused(1)
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    assert erase(Person("ann@example.com"))["unreadable"] == [str(batch.pk)]
    assert reencrypt()["unreadable"] == 1
    assert EmailBatch.objects.get().refused == batch.refused


def test_reasons_that_were_forgotten_are_passed_over(smtp) -> None:
    batch = refused(1)
    EmailBatch.objects.update(refused=[{**batch.refused[0], "reason": ""}])
    assert list(change_reasons(lambda stored, place: "new", "default")) == [Reasons(batch.pk)]
    assert EmailBatch.objects.get().refused[0]["reason"] == ""
