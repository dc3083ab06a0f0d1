"""What is left of an erased address is found in every text column, sealed ones included."""

from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType

from django_epica_mail import suppression
from django_epica_mail.models import EmailBatch, EmailLog, Suppression
from django_epica_mail.privacy.person import Person
from django_epica_mail.privacy.remains import remains

pytestmark = pytest.mark.django_db
ANN = Person("ann@example.com")


def left(*known: str) -> list[str]:
    return [it.rpartition(" ")[0] for it in remains(ANN, "default", known=known)]


@pytest.mark.parametrize("keys", [[], [Fernet.generate_key().decode()]])
def test_content_is_searched_whether_or_not_it_is_encrypted(queue_mail, epica_mail, keys) -> None:
    epica_mail(ENCRYPTION_KEYS=keys)
    log = queue_mail("bob@example.com", subject="To ann@example.com")
    assert sorted(left()) == ["epica_mail.EmailLog.envelope", "epica_mail.EmailLog.subject"]
    assert left(str(log.pk)) == [], "what is reported already is not reported twice"


def test_every_table_of_ours_is_searched(queue_mail) -> None:
    assert left() == []
    queue_mail("bob@example.com")
    EmailLog.objects.update(fallbacks=["ann%40example.com"])
    refusal = {"index": 0, "reason": "ann=40example.com"}
    EmailBatch.objects.create(total=1, payload="", refused=[refusal])
    suppression.add("bob@example.com", note="for \\u0061nn@example.com")
    assert Suppression.objects.count() == 1
    assert sorted(left()) == [
        "epica_mail.EmailBatch.refused",
        "epica_mail.EmailLog.fallbacks",
        "epica_mail.Suppression.note",
    ]


def test_the_admins_log_of_this_app_is_searched(queue_mail) -> None:
    user = User.objects.create(username="staff")
    for model in (EmailLog, User):
        LogEntry.objects.create(
            user=user, action_flag=1, object_repr="ann@example.com",
            content_type=ContentType.objects.get_for_model(model),
        )  # fmt: skip
    assert left() == ["admin.LogEntry.object_repr"]


def test_a_known_address_of_somebody_else_is_not_reported(queue_mail) -> None:
    queue_mail("mary.ann@example.com")
    EmailLog.objects.update(reply="550 <mary.ann@example.com> and <joe.ann@example.com>")
    assert left() == ["epica_mail.EmailLog.reply"]
    queue_mail("joe.ann@example.com")
    assert left() == []
