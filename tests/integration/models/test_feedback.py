"""Events of sent e-mails, and the suppression list."""

from __future__ import annotations

import uuid

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone, translation

from django_epica_mail import clock
from django_epica_mail.models import EmailEvent, Suppression


def test_the_name_of_an_event_is_translated() -> None:
    event = EmailEvent(kind="bounced", email_id=uuid.UUID(int=7))
    with translation.override("tr"):
        assert str(event) == f"geri döndü {uuid.UUID(int=7)}"


@pytest.mark.django_db
def test_an_event_is_stored_once() -> None:
    told = {"key": "1", "kind": "bounced", "at": timezone.now(), "source": "provider"}
    EmailEvent.objects.create(**told, created_at=clock.now())
    with pytest.raises(IntegrityError), transaction.atomic():
        EmailEvent.objects.create(**told, created_at=clock.now())


@pytest.mark.django_db
def test_an_address_is_listed_once_per_category_and_reason() -> None:
    entry = {"address": "a@example.com", "digest": "0" * 64, "reason": "bounce"}
    Suppression.objects.create(**entry)
    Suppression.objects.create(**entry, scope="news")
    with pytest.raises(IntegrityError), transaction.atomic():
        Suppression.objects.create(**entry)
    assert "a@example.com" not in str(Suppression.objects.first())
