"""Asks the DNS about a sender's domain, and reads its SPF record (RFC 7208).

What the DNS says was written by strangers: it is cut and made printable before anything reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_epica_mail.exceptions import MissingExtra

MAX_SPF_LOOKUPS = 10
"""RFC 7208, section 4.6.4: mechanisms of one evaluation that ask the DNS."""
_SECONDS = 4.0
"""The longest that one question waits for its answer."""
_MAX_FAILURES = 2
"""Questions without an answer after which no more are asked."""
_MAX_TEXT = 4096
"""Characters kept of a TXT record; a DKIM key of 4096 bits has about 750."""
_MAX_ANSWERS = 50
"""Records read of one answer."""

Network = IPv4Network | IPv6Network


class NotAsked(Exception):  # noqa: N818 - an answer, not an error
    """The DNS cannot be asked, or did not answer."""


class Lookups:
    """Questions to the DNS, each asked once."""

    def __init__(self, nameserver: str | None = None) -> None:
        """Ask ``nameserver`` (an IP address, optionally with ``:port``) or the system's.

        Raises ``MissingExtra`` and ``ImproperlyConfigured``.
        """
        try:
            self._dns: Any = import_module("dns.resolver")
            exceptions: Any = import_module("dns.exception")
        except ImportError as error:
            raise MissingExtra(
                "doctor --dns needs a package that is not installed: "
                'pip install "django-epica-mail[dns]".'
            ) from error
        self._error: type[Exception] = exceptions.DNSException
        self._known: dict[tuple[str, str], list[Any]] = {}
        self._failures = 0
        try:
            self._resolver = self._dns.Resolver(configure=nameserver is None)
        except self._error:
            self._resolver, self._failures = None, _MAX_FAILURES
        if nameserver is not None:
            host, port = _host_and_port(nameserver)
            self._resolver.nameservers, self._resolver.port = [host], port

    def texts(self, name: str) -> list[str]:
        """Return the TXT records of a name, cut and printable. Raises ``NotAsked``."""
        found = []
        for record in self._ask(name, "TXT"):
            text = b"".join(record.strings).decode("utf-8", "replace")[:_MAX_TEXT]
            found.append(
                "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)
            )
        return found

    def mail_hosts(self, name: str) -> list[str]:
        """Return the hosts of the MX records of a name, preferred first; ``""`` is a null MX."""
        records = sorted(self._ask(name, "MX"), key=lambda it: int(it.preference))
        return [it.exchange.to_text(omit_final_dot=True).removesuffix(".") for it in records]

    def addresses(self, name: str) -> list[str]:
        """Return the IP addresses of a host. Raises ``NotAsked``."""
        return [it.address for kind in ("A", "AAAA") for it in self._ask(name, kind)]

    def _ask(self, name: str, kind: str) -> list[Any]:
        """Return the records of a name, none if it does not exist. Raises ``NotAsked``."""
        question = (name.lower().rstrip("."), kind)
        if question not in self._known:
            if self._failures >= _MAX_FAILURES:
                raise NotAsked
            try:
                answer = self._resolver.resolve(
                    f"{question[0]}.", kind, lifetime=_SECONDS, raise_on_no_answer=False
                )
                self._known[question] = list(answer.rrset or ())[:_MAX_ANSWERS]
            except self._dns.NXDOMAIN:
                self._known[question] = []
            except (self._error, OSError, UnicodeError) as error:
                if not isinstance(error, UnicodeError):
                    self._failures += 1
                raise NotAsked from error
        return self._known[question]


def _host_and_port(nameserver: str) -> tuple[str, int]:
    host, port = nameserver, "53"
    if nameserver.count(":") == 1 or nameserver.startswith("["):
        host, _, port = nameserver.rpartition(":")
    try:
        return str(ip_address(host.strip("[]"))), int(port)
    except ValueError:
        raise ImproperlyConfigured(
            f"A name server is given as an IP address, or as address:port; it is {nameserver!r}."
        ) from None


# -- SPF


@dataclass
class SPF:
    """What the SPF record of a domain says."""

    record: str | None = None
    """The record, or ``None`` if there is none."""
    problem: str = ""
    """Why receivers treat the record as an error, if they do."""
    default: str = "?"
    """The qualifier of ``all``: what is said of every other address."""
    includes: set[str] = field(default_factory=set)
    """The domains that it includes, directly or through others."""
    networks: list[Network] = field(default_factory=list)
    """The addresses that may send."""

    def allows(self, address: str) -> bool:
        """Return whether an IP address is among those that may send."""
        ip = ip_address(address)
        return any(ip.version == it.version and ip in it for it in self.networks)


_MECHANISMS = frozenset({"include", "a", "mx", "ptr", "exists", "ip4", "ip6"})


class _Invalid(Exception):  # noqa: N818 - an answer, not an error
    """A record that receivers treat as an error."""


def read_spf(domain: str, lookups: Lookups) -> SPF:
    """Return what the SPF record of a domain says. Raises ``NotAsked``.

    ``ptr``, ``exists`` and macros are counted, but not evaluated: they depend on the mail.
    """
    try:
        if not _spf_records(domain, lookups):
            return SPF()
        return _SPFReader(lookups).read(domain, ())
    except _Invalid as error:
        return SPF(record=next(iter(_spf_records(domain, lookups)), None), problem=str(error))


def _spf_records(domain: str, lookups: Lookups) -> list[str]:
    return [it for it in lookups.texts(domain) if it.lower().split(" ")[0] == "v=spf1"]


class _SPFReader:
    """Reads a record and those that it includes."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._asked = 0

    def read(self, domain: str, within: tuple[str, ...]) -> SPF:
        """Return what a record says. Raises ``_Invalid``."""
        if domain in within:
            raise _Invalid(f"{domain} includes itself")
        records = _spf_records(domain, self._lookups)
        if len(records) != 1:
            raise _Invalid(f"{domain} has {len(records)} SPF records; it must have one")
        found = SPF(record=records[0])
        redirect, path = "", (*within, domain)
        for term in records[0].split()[1:]:
            qualifier, name, value = _parts(term)
            if name == "all":
                found.default, redirect = qualifier, ""
                break
            if name == "redirect":
                redirect = value.lower()
            elif name in _MECHANISMS:
                networks = list(self._networks(name, value, path, found))
                if qualifier == "+":
                    found.networks += networks
            elif "=" not in term:  # an unknown modifier is ignored, section 6
                raise _Invalid(f"{term[:50]!r} is no mechanism")
        if redirect and "%" not in redirect:
            inner = self._include(redirect, path, found)
            found.default = inner.default
            found.networks += inner.networks
        return found

    def _networks(
        self, name: str, value: str, path: tuple[str, ...], found: SPF
    ) -> Iterator[Network]:
        """Yield the networks of one mechanism."""
        if name in ("ip4", "ip6"):
            network = _network(value)
            if network.version != int(name[-1]):
                raise _Invalid(f"{name}:{value[:50]} is of the other version")
            yield network
            return
        target, _, size = value.partition("/")
        if name == "include" and "%" not in value:
            yield from self._include(target.lower(), path, found).networks
            return
        self._count()
        if "%" in value or name in ("ptr", "exists", "include"):
            return
        hosts = [target or path[-1]]
        if name == "mx":
            hosts = [host for host in self._lookups.mail_hosts(hosts[0])[:10] if host]
        for host in hosts:
            for address in self._lookups.addresses(host):
                has_size = size.isdecimal() and "." in address
                yield _network(f"{address}/{size}" if has_size else address)

    def _include(self, domain: str, path: tuple[str, ...], found: SPF) -> SPF:
        """Return what another record says, which counts for the one that names it."""
        self._count()
        inner = self.read(domain, path)
        found.includes |= {domain, *inner.includes}
        return inner

    def _count(self) -> None:
        self._asked += 1
        if self._asked > MAX_SPF_LOOKUPS:
            raise _Invalid(
                f"it asks the DNS more than {MAX_SPF_LOOKUPS} times (RFC 7208, section 4.6.4)"
            )


def _parts(term: str) -> tuple[str, str, str]:
    """Return qualifier, name and value of a term; a mechanism's ``/24`` stays with its value."""
    qualifier = term[0] if term[0] in "+-~?" else "+"
    rest = term.lstrip("+-~?") if term[0] in "+-~?" else term
    for at, character in enumerate(rest):
        if character in ":=/":
            value = rest[at:] if character == "/" else rest[at + 1 :]
            return qualifier, rest[:at].lower(), value
    return qualifier, rest.lower(), ""


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise _Invalid(f"{text[:50]!r} is no IP address or network") from None
