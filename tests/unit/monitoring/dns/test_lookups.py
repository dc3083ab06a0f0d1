"""Questions to a real DNS server, and SPF records of every sort."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from devservers.dns_server import DNSServer
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.monitoring.dns import lookups as dns_lookups
from django_epica_mail.monitoring.dns.lookups import SPF, Lookups, NotAsked, read_spf


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer() as running:
        yield running


@pytest.fixture
def lookups(server: DNSServer) -> Lookups:
    return Lookups(server.address)


def test_records_are_read_once(server: DNSServer, lookups: Lookups) -> None:
    long = "v=DKIM1; p=" + "A" * 600  # in three strings
    server.publish("k.example.com", "TXT", long)
    server.publish("example.com", "MX", "20 b.example.com.", "10 a.example.com.")
    server.publish("a.example.com", "A", "192.0.2.1")
    server.publish("a.example.com", "AAAA", "2001:db8::1")
    for _ in range(2):
        assert lookups.texts("k.example.com") == [long]
        assert lookups.texts("K.Example.com.") == [long]
        assert lookups.mail_hosts("example.com") == ["a.example.com", "b.example.com"]
        assert lookups.addresses("a.example.com") == ["192.0.2.1", "2001:db8::1"]
        assert lookups.texts("a.example.com") == lookups.texts("nowhere.example.com") == []
    assert len(server.asked) == len(set(server.asked))


def test_an_alias_is_followed(server: DNSServer, lookups: Lookups) -> None:
    server.publish("s._domainkey.example.com", "CNAME", "s.provider.test.")
    server.publish("s.provider.test", "TXT", "v=DKIM1; p=AAAA")
    assert lookups.texts("s._domainkey.example.com") == ["v=DKIM1; p=AAAA"]


def test_text_of_strangers_is_cut_and_printable(server: DNSServer, lookups: Lookups) -> None:
    server.records["example.com", "TXT"] = [
        r'"v=spf1 \027[31m\000\255"',
        '"' + "x" * 255 + '" ' * 1,
    ]
    server.publish("long.example.com", "TXT", "y" * 9000)
    for name in ("example.com", "long.example.com"):
        for text in lookups.texts(name):
            assert text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text
            assert "\x1b" not in text
            assert len(text) <= 4096


def test_a_server_that_does_not_answer_is_asked_twice_at_most(
    server: DNSServer, lookups: Lookups, monkeypatch
) -> None:
    monkeypatch.setattr(dns_lookups, "_SECONDS", 0.2)
    server.silent = True
    began = time.monotonic()
    for number in range(10):
        with pytest.raises(NotAsked):
            lookups.texts(f"name{number}.example.com")
    assert time.monotonic() - began < 2


def test_without_a_network_nothing_is_asked(monkeypatch) -> None:
    with DNSServer() as stopped:
        address = stopped.address
    monkeypatch.setattr(dns_lookups, "_SECONDS", 0.2)
    with pytest.raises(NotAsked):
        Lookups(address).texts("example.com")


def test_a_machine_without_a_resolver_asks_nobody(monkeypatch) -> None:
    import dns.resolver

    def fail(*_: Any, **__: Any) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "Resolver", fail)
    with pytest.raises(NotAsked):
        Lookups().texts("example.com")


def test_a_name_that_is_none_is_not_asked(lookups: Lookups) -> None:
    for name in ("a" * 64 + ".example.com", "a..example.com"):
        with pytest.raises(NotAsked):
            lookups.texts(name)


@pytest.mark.parametrize("given", ["dns.example.com", "127.0.0.1:port", "", "[::1"])
def test_a_name_server_is_an_address(given: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="IP address"):
        Lookups(given)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_a_name_server_may_have_a_port(given: str, meant: tuple[str, int]) -> None:
    assert dns_lookups._host_and_port(given) == meant


def test_the_missing_package_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(MissingExtra, match=r'"django-epica-mail\[dns\]"'):
        Lookups()


# -- SPF


class Book:
    """The DNS as a dict, for what needs no server."""

    def __init__(self, **texts: str) -> None:
        self._texts = {f"{name}.test": text for name, text in texts.items()}

    def texts(self, name: str) -> list[str]:
        return [self._texts[name]] if name in self._texts else []

    def mail_hosts(self, name: str) -> list[str]:
        return ["mx.test"] if name == "a.test" else []

    def addresses(self, name: str) -> list[str]:
        return {"mx.test": ["192.0.2.9"], "a.test": ["192.0.2.1", "2001:db8::1"]}.get(name, [])


def read(text: str, **others: str) -> SPF:
    book: Any = Book(a=text, **others)
    return read_spf("a.test", book)


def test_a_domain_without_spf_has_none() -> None:
    assert read("google-site-verification=x") == SPF()


@pytest.mark.parametrize(
    ("text", "allowed", "refused"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", "192.0.2.77", "192.0.3.1"),
        ("v=spf1 IP6:2001:db8::/32 -all", "2001:db8::77", "192.0.2.1"),
        ("v=spf1 a -all", "192.0.2.1", "192.0.2.2"),
        ("v=spf1 +a:a.test -all", "2001:db8::1", "192.0.2.2"),
        ("v=spf1 a/24 -all", "192.0.2.77", "192.0.3.1"),
        ("v=spf1 mx -all", "192.0.2.9", "192.0.2.1"),
        ("v=spf1 include:b.test ~all", "198.51.100.1", "192.0.2.1"),
        ("v=spf1 redirect=b.test", "198.51.100.1", "192.0.2.1"),
        ("v=spf1 -ip4:192.0.2.1 ip4:192.0.2.2 ?all", "192.0.2.2", "192.0.2.1"),
        ("v=spf1 ip4:192.0.2.2 -all ip4:192.0.2.3", "192.0.2.2", "192.0.2.3"),
        ("v=spf1 exists:%{i}.x.test ptr include:%{d}.test ip4:192.0.2.2", "192.0.2.2", "192.0.2.1"),
        ("v=spf1 x-own=thing ip4:192.0.2.2", "192.0.2.2", "192.0.2.1"),
    ],
)
def test_the_addresses_that_may_send(text: str, allowed: str, refused: str) -> None:
    found = read(text, b="v=spf1 ip4:198.51.100.0/24 -all")
    assert found.problem == ""
    assert found.allows(allowed)
    assert not found.allows(refused)


@pytest.mark.parametrize(
    ("text", "default"),
    [("v=spf1 -all", "-"), ("v=spf1 all", "+"), ("v=spf1", "?"), ("v=spf1 redirect=b.test", "~")],
)
def test_what_is_said_of_every_other_address(text: str, default: str) -> None:
    assert read(text, b="v=spf1 ~all").default == default


def test_includes_of_includes_are_known() -> None:
    found = read("v=spf1 include:B.test -all", b="v=spf1 include:c.test", c="v=spf1 ~all")
    assert found.includes == {"b.test", "c.test"}
    assert found.default == "-"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v=spf1 ipv4:192.0.2.1", "'ipv4:192.0.2.1' is no mechanism"),
        ("v=spf1 ip4:192.0.2.300", "'192.0.2.300' is no IP address"),
        ("v=spf1 ip4:2001:db8::1", "ip4:2001:db8::1 is of the other version"),
        ("v=spf1 include:nowhere.test", "nowhere.test has 0 SPF records"),
        ("v=spf1 include:a.test", "a.test includes itself"),
        ("v=spf1 redirect=a.test", "a.test includes itself"),
        ("v=spf1" + " a" * 11, "more than 10 times"),
        ("v=spf1 include:b.test include:b.test include:b.test", "more than 10 times"),
    ],
)
def test_a_record_that_receivers_ignore_is_a_problem(text: str, problem: str) -> None:
    found = read(text, b="v=spf1 a a a a")
    assert found.record == text
    assert problem in found.problem


def test_two_records_are_a_problem(server: DNSServer, lookups: Lookups) -> None:
    server.publish("example.com", "TXT", "v=spf1 -all", "v=spf1 ~all", "other")
    assert "has 2 SPF records" in read_spf("example.com", lookups).problem


TERMS = st.sampled_from(["a", "mx", "+all", "-all", "include:b.test", "ip4:1.2.3.4", "redirect="])


@given(st.lists(TERMS | st.text(min_size=1, max_size=20), max_size=14))
def test_no_record_makes_the_reader_fail(terms: list[str]) -> None:
    found = read(" ".join(["v=spf1", *terms]), b="v=spf1 include:a.test ip4:192.0.2.1/33")
    assert isinstance(found.problem, str)
