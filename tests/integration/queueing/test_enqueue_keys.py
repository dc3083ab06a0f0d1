"""Idempotency keys that the collations of MySQL and MariaDB take for the same."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import connection, transaction

from django_epica_mail import outbox
from django_epica_mail.models import EmailLog, EmailRecipient
from django_epica_mail.queueing import bulk, enqueue
from django_epica_mail.routing import Options

ALIKE = ["order-aB3", "order-ab3 ", "ördér-ab3"]


def message(to: str = "to@example.com") -> EmailMessage:
    return EmailMessage("Subject", "Body", None, [to])


def entries(*keys: str) -> list[dict[str, Any]]:
    return [
        {
            "subject": "Subject",
            "message": "Text",
            "from_email": None,
            "recipient_list": [f"{number}@example.com"],
            "idempotency_key": key,
        }
        for number, key in enumerate(keys)
    ]


@pytest.fixture
def is_exact(smtp) -> bool:
    """Whether the database takes only equal keys for the same."""
    return connection.vendor != "mysql"


@pytest.mark.parametrize("second", ALIKE)
def test_no_mail_is_taken_for_that_of_another_key(is_exact, second: str) -> None:
    first = outbox.enqueue(message(), idempotency_key="order-ab3")
    if is_exact:
        assert outbox.enqueue(message(), idempotency_key=second) != first
    else:
        with pytest.raises(ValueError, match="is not distinct from 'order-ab3'") as raised:
            outbox.enqueue(message(), idempotency_key=second)
        assert repr(second) in str(raised.value)
        assert str(first.pk) in str(raised.value)
    assert EmailLog.objects.count() == EmailRecipient.objects.count() == 1 + is_exact
    assert outbox.enqueue(message(), idempotency_key="order-ab3") == first


def test_a_refused_key_leaves_the_callers_transaction_usable(is_exact) -> None:
    with transaction.atomic():
        outbox.enqueue(message(), idempotency_key="order-ab3")
        if not is_exact:
            with pytest.raises(ValueError, match="not distinct"):
                outbox.enqueue(message(), idempotency_key="order-AB3")
        outbox.enqueue(message(), idempotency_key="order-7")
    assert EmailLog.objects.count() == 2


def test_several_messages_are_queued_all_or_none(is_exact) -> None:
    keys = ("k-ab", "k-AB", "k-cd")
    pairs = [(message(), Options(transport="smtp", idempotency_key=key)) for key in keys]
    if is_exact:
        assert enqueue.enqueue_pairs(pairs).accepted == 3
    else:
        with pytest.raises(ValueError, match="not distinct"):
            enqueue.enqueue_pairs(pairs)
        assert not EmailLog.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_bulk_call_refuses_the_entry_and_queues_the_others(is_exact) -> None:
    earlier = outbox.enqueue(message(), idempotency_key="k-ef")
    batch = bulk.submit(entries("k-ab", "k-AB", "k-cd", "k-Éf", "k-ef"))
    batch = bulk.expand(batch.pk)
    assert (batch.is_finished, batch.position) == (True, 5)
    refused = [(it["index"], it["error"], it["rule"]) for it in batch.refused]
    if is_exact:
        assert (batch.accepted, refused) == (4, [])
    else:
        rule = "enqueue._check_key"
        assert batch.accepted == 2
        assert refused == [(1, "ValueError", rule), (3, "ValueError", rule)]
        assert "'k-AB' is not distinct from 'k-ab'" in bulk.reason(batch, 1)
        assert str(earlier.pk) in bulk.reason(batch, 3)
