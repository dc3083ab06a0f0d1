"""A slow server gets several connections at once."""

from __future__ import annotations

from collections import Counter

import pytest

from devservers.smtp_faults import Reply, Rule, delay, refuse
from django_epica_mail.conf import MOST_CONNECTIONS, PERMITS
from django_epica_mail.models import DeliveryAttempt, DeliveryGate, EmailLog


def send_all(queue_mail, deliver, number: int) -> None:
    for _ in range(number):
        queue_mail()
    while deliver():
        pass


@pytest.mark.parametrize("connections", [1, 3])
def test_a_slow_server_gets_several_connections(
    smtp, queue_mail, deliver, epica_mail, connections: int
) -> None:
    epica_mail(CONNECTIONS=connections)
    smtp.inject(delay(0.02))
    before = smtp.connections.opened
    send_all(queue_mail, deliver, 12)
    assert smtp.connections.opened - before == connections
    arrived = Counter(mail.message_id for mail in smtp.accepted)
    assert sorted(arrived) == sorted(EmailLog.objects.values_list("message_id", flat=True))
    assert set(arrived.values()) == {1}
    assert set(EmailLog.objects.values_list("status", flat=True)) == {"sent"}
    assert DeliveryAttempt.objects.count() == 12


def test_a_slow_server_that_refuses_some_refuses_only_these(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(CONNECTIONS=4)
    smtp.inject(delay(0.02))
    smtp.inject(refuse("content", 554, "5.7.1 Spam", times=3))
    send_all(queue_mail, deliver, 12)
    counts = Counter(EmailLog.objects.values_list("status", flat=True))
    assert counts == {"sent": 9, "failed": 3}
    assert len(smtp.accepted) == 9


def test_a_slow_server_that_shuts_down_leaves_the_rest_queued(
    smtp, queue_mail, deliver, epica_mail
) -> None:
    epica_mail(CONNECTIONS=4)
    smtp.inject(delay(0.02))
    good_bye = Reply(421, "4.3.2 Shutting down")
    smtp.inject(Rule("mail", good_bye, lambda session: len(smtp.accepted) >= 6))
    send_all(queue_mail, deliver, 20)
    counts = Counter(EmailLog.objects.values_list("status", flat=True))
    assert counts["sent"] == len(smtp.accepted) >= 6
    assert set(counts) <= {"sent", "queued", "retrying"}
    assert not EmailLog.objects.exclude(status="sent").filter(tries__gt=0).exists()
    assert DeliveryGate.objects.get(scope="transport").outages


def test_there_is_always_a_permit_for_the_next_mail() -> None:
    assert MOST_CONNECTIONS < PERMITS
