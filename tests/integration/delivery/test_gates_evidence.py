"""One bad mail never delays another: what it takes for a transport to be out of order."""

from __future__ import annotations

import pytest
from django.core.mail import EmailMessage

from devservers.smtp_faults import Reply, Rule
from django_epica_mail import outbox
from django_epica_mail.delivery import gates
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Failure, Kind, Result, Scope

DOUBTFUL = Result(failure=Failure(kind=Kind.TRANSIENT, scope=Scope.SERVER))
SUCCESS = Result()


def message(sender: str, to: str) -> EmailMessage:
    return EmailMessage("S", "B", f"Shop <{sender}@example.com>", [f"{to}@example.net"])


def weigh(evidence: gates.Evidence, sender: str, to: str, result: Result = DOUBTFUL) -> bool:
    weighed = evidence.weigh("smtp", message(sender, to), result, is_probe=False)
    return weighed.failure is not None and weighed.failure.stops_transport


def test_three_mails_of_different_senders_to_different_recipients_are_evidence() -> None:
    evidence = gates.Evidence()
    assert [weigh(evidence, f"s{n}", f"r{n}") for n in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("name", [("s{n}", "same"), ("same", "{n}")])
def test_mails_that_share_a_party_are_no_independent_evidence(name) -> None:
    evidence = gates.Evidence()
    sender, to = name
    assert not any(weigh(evidence, sender.format(n=n), to.format(n=n)) for n in range(9))


def test_a_site_with_one_sender_needs_ten_in_a_row_to_different_recipients() -> None:
    evidence = gates.Evidence()
    assert [weigh(evidence, "shop", f"r{n}") for n in range(10)] == [False] * 9 + [True]


def test_a_success_between_them_clears_the_evidence() -> None:
    evidence = gates.Evidence()
    for n in range(30):
        assert not weigh(evidence, f"s{n}", f"r{n}")
        assert not weigh(evidence, "good", "good", SUCCESS)


@pytest.mark.parametrize("scope", [Scope.MAIL, Scope.SENDER, Scope.RECIPIENT])
def test_a_fault_of_the_mail_is_never_evidence(scope) -> None:
    evidence = gates.Evidence()
    result = Result(failure=Failure(kind=Kind.TRANSIENT, scope=scope))
    assert not any(weigh(evidence, f"s{n}", f"r{n}", result) for n in range(30))


@pytest.mark.parametrize(
    ("stage", "code", "text"),
    [
        ("mail", 421, "Service not available"),
        ("content", 421, "4.7.0 suspicious content"),
        ("content", 421, "4.3.0 Temporary system problem"),
        ("mail", 550, "5.1.8 Sender's domain is not verified"),
        ("rcpt", 451, "4.3.0 Later"),
        ("content", 554, "5.7.1 Spam"),
    ],
)
def test_one_bad_mail_among_ten_delays_no_good_one(
    smtp, deliver, travel, stage, code, text
) -> None:
    smtp.inject(
        Rule(stage, Reply(code, text), lambda session: (session.sender or "").startswith("bad"))
    )
    for number in range(40):
        sender = "bad" if number % 10 == 0 else "good"
        outbox.enqueue(
            EmailMessage("S", "B", f"{sender}@example.com", [f"r{number}@example.net"]),
            transport="smtp",
        )
    deliver()
    assert gates.Gates("default").out_of_order() == []
    assert EmailLog.objects.filter(status="sent").count() == len(smtp.accepted) == 36
    for _ in range(4):
        travel(minutes=6)
        deliver()
    bad = EmailLog.objects.filter(from_email__startswith="bad")
    assert {log.status for log in bad} == {"failed"}, "a bad mail uses up its tries"


def test_a_server_that_refuses_everyone_is_out_of_order_and_recovers(smtp, deliver, travel) -> None:
    rule = smtp.inject(Rule("mail", Reply(421, "Service not available")))
    for number in range(20):
        outbox.enqueue(
            EmailMessage("S", "B", f"s{number}@example.com", [f"r{number}@example.net"]),
            transport="smtp",
        )
    deliver()
    assert gates.Gates("default").out_of_order() == ["smtp"]
    assert EmailLog.objects.filter(tries__gt=0).count() == 2, "the first two are no evidence yet"
    for _ in range(6):  # probes use up no try
        travel(minutes=1)
        deliver()
    assert EmailLog.objects.filter(tries__gt=1).count() == 0
    smtp.withdraw(rule)
    for _ in range(3):
        travel(minutes=6)
        deliver()
    assert EmailLog.objects.filter(status="sent").count() == 20
    assert gates.Gates("default").out_of_order() == []


OF_DOMAIN = Result(failure=Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN))


def weigh_domain(evidence: gates.Evidence, sender: str, to: str, *, is_probe: bool = False) -> bool:
    mail = EmailMessage("S", "B", f"{sender}@example.com", [to])
    weighed = evidence.weigh("smtp", mail, OF_DOMAIN, is_probe=is_probe)
    return weighed.failure is not None and weighed.failure.stops_transport


def test_complaints_of_one_domain_are_never_evidence_against_a_transport() -> None:
    evidence = gates.Evidence()
    assert not any(weigh_domain(evidence, f"s{n}", f"r{n}@one.example") for n in range(50))
    assert not weigh_domain(evidence, "s", "r@one.example", is_probe=True)


def test_complaints_of_independent_domains_are() -> None:
    evidence = gates.Evidence()
    found = [weigh_domain(evidence, f"s{n}", f"r@d{n}.example") for n in range(3)]
    assert found == [False, False, True]


def test_without_rates_of_their_own_domains_count_as_any_recipients(epica_mail) -> None:
    epica_mail(FIND_RATES=False)
    evidence = gates.Evidence()
    found = [weigh_domain(evidence, f"s{n}", f"r{n}@one.example") for n in range(3)]
    assert found == [False, False, True]
