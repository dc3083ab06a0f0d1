"""The papers of a sender, compared with a DNS server of the test's own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import django
import dkim as dkimpy
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command

from devservers.dns_server import DNSServer
from django_epica_mail import outbox
from django_epica_mail.monitoring.dns import lookups, sender_records
from django_epica_mail.monitoring.dns.sender_records import Record
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection

pytestmark = pytest.mark.django_db

SMTP = "django.core.mail.backends.smtp.EmailBackend"
D = "example.com"


@pytest.fixture
def dns() -> Iterator[DNSServer]:
    with DNSServer() as running:
        running.publish(D, "TXT", "v=spf1 ip4:203.0.113.0/24 a:mail.example.com -all")
        running.publish(f"_dmarc.{D}", "TXT", f"v=DMARC1; p=reject; rua=mailto:d@{D}")
        running.publish(D, "MX", "10 mail.example.com.")
        running.publish("mail.example.com", "A", "8.8.4.4")
        yield running


@pytest.fixture
def transport(settings: Any, epica_mail: Callable[..., None], monkeypatch: Any) -> Any:
    """Set the only transport: its host and other OPTIONS."""
    monkeypatch.setenv("THE_KEY", "A" * 43 + "=")

    def use(host: str = "mail.example.com", backend: str = SMTP, **options: Any) -> None:
        if backend == SMTP:
            options["host"] = host
        spec = {"BACKEND": backend, "OPTIONS": options}
        if django.VERSION >= (6, 1):
            queue = {"BACKEND": transports.QUEUE_BACKEND, "OPTIONS": {"transport": "smtp"}}
            settings.MAILERS = {"default": queue, "smtp": spec}
        else:
            epica_mail(TRANSPORTS={"smtp": spec})

    settings.SERVER_EMAIL = f"root@{D}"
    epica_mail(
        REAL_TRANSPORTS_IN_TESTS=True, ROUTES=[{"match": {"bulk": True}, "unsubscribe": True}]
    )
    use(dkim={"selector": "s1", "key_env": "THE_KEY"})
    return use


def key_record() -> str:
    backend: Any = connection.build("smtp")
    return str(backend.signer.keys[0].record)


@pytest.fixture
def papers(dns: DNSServer, transport: Any) -> Callable[..., dict[str, Record]]:
    """Return the papers of one domain, by name."""
    dns.publish(f"s1._domainkey.{D}", "TXT", key_record())

    def ask(domain: str = D) -> dict[str, Record]:
        found = sender_records.examine([domain], dns.address)
        return {it.name: it for it in found if it.domain in (domain, "*")}

    return ask


def test_a_sender_whose_papers_are_complete(papers) -> None:
    found = papers()
    assert {name: it.level for name, it in found.items()} == dict.fromkeys(
        ("SPF", "DKIM", "DMARC", "MX", "One-click"), "ok"
    )
    assert "p=reject" in found["DMARC"].text
    assert "DKIM (example.com)" in found["DMARC"].text
    assert not any(it.publish for it in found.values())


def test_what_a_new_domain_must_publish_then_satisfies_the_doctor(dns, papers) -> None:
    dns.records.clear()
    dns.publish("mail.example.com", "A", "8.8.4.4")
    missing = papers()
    for it in missing.values():
        if it.publish:
            assert it.level == "error"
            name, kind, value = it.publish.split(" ", 2)
            dns.publish(name, kind, f"{value}." if kind == "MX" else value)
    assert {it.level for it in papers().values()} == {"ok"}


@pytest.mark.parametrize(
    ("spf", "level", "told"),
    [
        ("v=spf1 -all", "warning", "does not list mail.example.com"),
        ("v=spf1 +all", "error", "lets every server send"),
        ("v=spf1 ip4:8.8.4.0/24", "warning", "end it with ~all"),
        ("v=spf1 ip5:8.8.4.0/24", "error", "Receivers ignore it"),
        ("something else", "error", "There is none"),
    ],
)
def test_spf(dns, papers, spf: str, level: str, told: str) -> None:
    dns.publish(D, "TXT", spf)
    assert papers()["SPF"].level == level
    assert told in papers()["SPF"].text


@pytest.mark.parametrize(
    ("host", "include"),
    [("smtp.office365.com", "spf.protection.outlook.com"), ("smtp.gmail.com", "_spf.google.com")],
)
def test_the_spf_of_a_known_provider(dns, papers, transport, host: str, include: str) -> None:
    transport(host)
    assert papers()["SPF"].level == "error"
    assert papers()["SPF"].publish.startswith(f"{D} TXT v=spf1 include:{include} ip4:")
    dns.publish(include, "TXT", "v=spf1 ip4:198.51.100.0/24 -all")
    dns.publish(D, "TXT", f"v=spf1 include:{include} -all")
    assert papers()["SPF"].level == "ok"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_spf_of_a_server_without_a_public_address(papers, transport, dns, host: str) -> None:
    transport(host)
    assert (papers()["SPF"].level, "not known here" in papers()["SPF"].text) == ("ok", True)
    dns.publish(D, "TXT", "nothing")
    assert "ip4:ADDRESS-OF-YOUR-SERVER" in papers()["SPF"].publish


@pytest.mark.parametrize(
    ("change", "level", "told"),
    [
        (lambda it: it.replace("p=", "p=AAAA"), "error", "another key"),
        (lambda it: it.replace("ed25519", "rsa"), "error", "another key"),
        (lambda it: it.split("p=")[0] + "p=", "error", "revoked"),
        (lambda it: it.replace("DKIM1", "DKIM2"), "error", "version"),
        (lambda it: f"t=s:y; {it}", "warning", "test"),
        (lambda it: it.replace("p=", "p= "), "ok", "holds the key"),
        (lambda it: it.replace("v=DKIM1; ", ""), "ok", "holds the key"),
    ],
)
def test_the_record_of_a_key(dns, papers, change, level: str, told: str) -> None:
    dns.publish(f"s1._domainkey.{D}", "TXT", change(key_record()))
    assert papers()["DKIM"].level == level
    assert told in papers()["DKIM"].text
    assert bool(papers()["DKIM"].publish) == (level != "ok")


def test_two_records_of_a_key(dns, papers) -> None:
    dns.publish(f"s1._domainkey.{D}", "TXT", key_record(), "v=DKIM1; p=")
    assert "has 2 records" in papers()["DKIM"].text


def test_the_judge_agrees_about_the_record_to_publish(papers) -> None:
    dkimpy.evaluate_pk(b"s1._domainkey.example.com", key_record().encode())


def test_dkim_of_a_provider_that_signs_itself(dns, papers, transport) -> None:
    transport("smtp.office365.com")
    assert "console of Microsoft 365" in papers()["DKIM"].text
    dns.publish(f"selector2._domainkey.{D}", "CNAME", "s2.outlook.test.")
    dns.publish("s2.outlook.test", "TXT", "v=DKIM1; p=AAAA")
    assert papers()["DKIM"].level == "ok"


def test_dkim_of_a_server_that_is_not_known(papers, transport) -> None:
    transport("mail.example.com")
    assert papers()["DKIM"].level == "warning"
    assert "set its option dkim" in papers()["DKIM"].text


def test_the_domain_that_bounces_go_to_has_papers_of_its_own(dns, transport) -> None:
    transport("mail.example.com", envelope_from="bounces+{id}@returned.example")
    found = sender_records.examine([], dns.address)
    assert {it.name: it.level for it in found if it.domain == "returned.example"}["SPF"] == "error"
    transport("mail.example.com")
    assert "returned.example" not in {it.domain for it in sender_records.examine([], dns.address)}


def test_a_key_that_cannot_be_read_is_not_asked_about(papers, transport) -> None:
    transport(dkim={"selector": "s1", "key_env": "NO_SUCH_KEY"})
    assert papers()["DKIM"].level == "not asked"
    assert "NO_SUCH_KEY" in papers()["DKIM"].text


def test_a_provider_of_anymail_is_not_asked_about(papers, transport) -> None:
    transport(backend="anymail.backends.test.EmailBackend")
    assert papers()["DKIM"].level == papers()["SPF"].level == "not asked"


@pytest.mark.parametrize(
    ("records", "level", "told"),
    [
        ([], "error", "There is none"),
        (["v=DMARC1; p=none"], "warning", "Nobody receives reports"),
        (["v=DMARC1; rua=mailto:x@example.com"], "error", "Its policy is ''"),
        (["v=DMARC1; p=monitor"], "error", "'monitor'"),
        (["v=DMARC1; p=none", "v=DMARC1; p=reject"], "error", "has 2 records"),
        (["v=DMARC1; p=none; rua=mailto:x@example.com"], "ok", "p=none"),
        (["other", "v=DMARC1;p=quarantine;rua=mailto:x@example.com"], "ok", "p=quarantine"),
        (["v=DMARC1; p=none; adkim=s; rua=mailto:x@example.com"], "ok", "p=none"),
    ],
)
def test_dmarc(dns, papers, records: list[str], level: str, told: str) -> None:
    dns.publish(f"_dmarc.{D}", "TXT", *records)
    assert papers()["DMARC"].level == level
    assert told in papers()["DMARC"].text


def test_dmarc_of_a_subdomain_is_that_of_its_domain(dns, papers) -> None:
    dns.publish(f"_dmarc.{D}", "TXT", "v=DMARC1; p=reject; sp=none; rua=mailto:x@example.com")
    assert "p=none by _dmarc.example.com" in papers("a.news.example.com")["DMARC"].text


def test_a_signature_by_the_parent_domain_does_not_align_strictly(dns, papers, transport) -> None:
    transport(dkim={"selector": "s1", "key_env": "THE_KEY", "domain": D})
    dns.publish(f"_dmarc.{D}", "TXT", "v=DMARC1; p=reject; adkim=s; rua=mailto:x@example.com")
    found = papers("news.example.com")["DMARC"]
    assert (found.level, "ours are by example.com" in found.text) == ("error", True)
    assert "adkim=r" in found.publish


@pytest.mark.parametrize(
    ("records", "level", "told"),
    [
        ([("MX", "0 .")], "error", "null MX"),
        ([], "error", "There is none"),
        ([("A", "192.0.2.1")], "warning", "host of that name"),
        ([("MX", "10 gone.example.com.")], "error", "without an address: gone.example.com"),
    ],
)
def test_mx(dns, papers, records: list[tuple[str, str]], level: str, told: str) -> None:
    del dns.records[D, "MX"]
    for kind, value in records:
        dns.publish(D, kind, value)
    assert papers()["MX"].level == level
    assert told in papers()["MX"].text


def test_a_from_of_a_free_mailer(papers, transport) -> None:
    assert papers("gmail.com")["From"].level == "error"
    transport("smtp.gmail.com")
    assert "From" not in papers("gmail.com")


def test_bulk_mail_without_one_click(papers, epica_mail) -> None:
    epica_mail(ROUTES=[])
    assert papers()["One-click"].level == "warning"


def test_the_domains_are_those_of_settings_keys_and_recent_mail(dns, transport) -> None:
    transport(dkim=[{"selector": "s", "key_env": "THE_KEY", "domain": "signed.example"}])
    outbox.enqueue(
        EmailMessage("S", "B", '"x, y" <a@Sender.Example>', ["to@example.org"]), transport="smtp"
    )
    found = sender_records.examine(["given.example"], dns.address)
    assert {it.domain for it in found} == {
        *(D, "given.example", "sender.example", "signed.example", "*")
    }


def test_without_an_answer_each_paper_is_not_asked(dns, papers, monkeypatch) -> None:
    monkeypatch.setattr(lookups, "_SECONDS", 0.1)
    dns.silent = True
    found = papers()
    assert {found[it].level for it in ("SPF", "DKIM", "DMARC", "MX")} == {"not asked"}


def doctor(*arguments: str) -> str:
    output = StringIO()
    with contextlib.suppress(SystemExit):  # other findings are errors here
        call_command("epica_mail", "doctor", *arguments, stdout=output)
    return output.getvalue()


def test_the_command_prints_a_table_and_what_to_publish(dns, papers) -> None:
    dns.publish(f"_dmarc.{D}", "TXT")
    printed = doctor("--dns", D, "--nameserver", dns.address)
    lines = printed.splitlines()
    assert any(line.split()[:4] == [D, "*", "DMARC", "error"] for line in lines)
    assert any(line.split()[:4] == [D, "smtp", "DKIM", "ok"] for line in lines)
    at = lines.index("To publish or correct in the DNS:")
    assert lines[at + 1].strip().startswith("_dmarc.example.com TXT v=DMARC1; p=none")
    report = json.loads(doctor("--dns", "--nameserver", dns.address, "--json"))
    assert set(report) == {"findings", "dns"}
    assert "dns" not in json.loads(doctor("--json"))


def test_the_private_key_is_not_printed(dns, papers) -> None:
    assert "AAAAAAAA" not in doctor("--dns", D, "--nameserver", dns.address)


@pytest.mark.parametrize("arguments", [["--nameserver", "name"], ["not a domain"], ["localhost"]])
def test_wrong_arguments_are_explained(papers, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="it is"):
        call_command("epica_mail", "doctor", "--dns", *arguments)
    if arguments[0] != "--nameserver":
        with pytest.raises(ImproperlyConfigured):
            sender_records.examine(arguments, "127.0.0.1:1")
