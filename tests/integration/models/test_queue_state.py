"""Gates and totals."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from django.db import IntegrityError, transaction
from django.utils import translation

from django_epica_mail.models import DeliveryGate, EmailTotal


@pytest.mark.django_db
def test_a_queue_or_transport_has_one_gate() -> None:
    DeliveryGate.objects.create(scope="queue", name="emails")
    DeliveryGate.objects.create(scope="transport", name="emails")
    with pytest.raises(IntegrityError), transaction.atomic():
        DeliveryGate.objects.create(scope="queue", name="emails")


def test_the_name_of_a_gate_is_translated() -> None:
    gate = DeliveryGate(scope="queue", name="emails")
    assert str(gate) == "queue emails"
    with translation.override("tr"):
        assert str(gate) == "“emails” kuyruğu"


@pytest.mark.django_db
def test_each_hour_has_one_total_of_an_event() -> None:
    key = {
        "hour": datetime(2027, 1, 2, 3, tzinfo=timezone.utc),
        "queue": "emails",
        "transport": "smtp",
        "event": "failed",
        "failure_kind": "permanent",
    }
    EmailTotal.objects.create(**key, failure_code=550)
    EmailTotal.objects.create(**key, failure_code=554)
    with pytest.raises(IntegrityError), transaction.atomic():
        EmailTotal.objects.create(**key, failure_code=550)
