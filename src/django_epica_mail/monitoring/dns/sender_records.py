"""The papers of a sender: what the DNS must say of a From domain so that its mail is accepted.

For each domain, SPF (RFC 7208), DKIM (RFC 6376), DMARC with alignment (RFC 7489), where bounces go,
and the rules that large providers have for bulk senders.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parseaddr
from ipaddress import ip_address
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, router

from django_epica_mail import conf
from django_epica_mail.exceptions import MissingExtra
from django_epica_mail.models import EmailLog
from django_epica_mail.monitoring.dns.lookups import SPF, Lookups, NotAsked, read_spf
from django_epica_mail.transports import config as transports
from django_epica_mail.transports import connection
from django_epica_mail.transports.dkim import Key, Signer, ascii_domain
from django_epica_mail.transports.smtp import RecordingBackend

LEVELS = ("error", "warning", "ok", "not asked")
_RECENT = 1000
"""Of how many of the newest mails the From is read."""
_MAX_DOMAINS = 50
_FREE_MAILERS = {
    **dict.fromkeys(("gmail.com", "googlemail.com"), "Google"),
    **dict.fromkeys(("outlook.com", "hotmail.com", "live.com", "msn.com"), "Microsoft 365"),
    **dict.fromkeys(("yahoo.com", "ymail.com", "aol.com", "gmx.com", "gmx.de", "web.de"), ""),
    **dict.fromkeys(("icloud.com", "me.com", "mac.com", "proton.me", "protonmail.com"), ""),
    **dict.fromkeys(("mail.ru", "yandex.com", "yandex.ru"), ""),
}
"""Domains whose owners let nobody else send for them, and which provider of ours that is."""


class _Provider(NamedTuple):
    """A provider that a transport's host belongs to."""

    name: str
    host: str
    """A pattern for the whole host."""
    spf: str
    """What the SPF record of a domain must include."""
    selectors: Sequence[str]
    """Its usual names of DKIM keys."""


_PROVIDERS = (
    _Provider(
        "Microsoft 365",
        r"smtp\.office365\.com|.*\.mail\.protection\.outlook\.com",
        "spf.protection.outlook.com",
        ("selector1", "selector2"),
    ),
    _Provider("Google", r"smtp(-relay)?\.g(oogle)?mail\.com", "_spf.google.com", ("google",)),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One of the papers of a domain."""

    domain: str
    transport: str
    """The alias of the transport it concerns, or ``*`` for all of them."""
    name: str
    """``SPF``, ``DKIM``, ``DMARC``, ``MX`` or ``From``; ``One-click`` of the whole site."""
    level: str
    """One of ``LEVELS``."""
    text: str
    publish: str = ""
    """The record to publish, or to correct."""


def examine(domains: Sequence[str] = (), nameserver: str | None = None) -> list[Record]:
    """Return the papers of every From domain, those of ``domains`` included.

    Domains are those of the settings, of the keys of DKIM, of signed return addresses, to which
    bounces go, and of the newest mail. Raises
    ``MissingExtra`` without dnspython, ``ImproperlyConfigured`` for an invalid ``nameserver``.
    """
    lookups = Lookups(nameserver)
    equipped = [_Equipped(alias) for alias in transports.aliases()]
    found: list[Record] = []
    for domain in sorted(_domains(domains, equipped))[:_MAX_DOMAINS]:
        for it in equipped:
            found += _asked(domain, it.alias, "SPF", _spf, lookups, it)
            found += _asked(domain, it.alias, "DKIM", _dkim, lookups, it)
        found += _asked(domain, "*", "DMARC", _dmarc, lookups, equipped)
        found += _asked(domain, "*", "MX", _mx, lookups)
        found += _from(domain, equipped)
    return [*found, *_one_click()]


class _Equipped:
    """A transport, as far as the DNS is concerned with it."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.signer: Signer | None = None
        self.host = ""
        self.problem = ""
        self.is_smtp = False
        try:
            backend = connection.build(alias)
        except (ImproperlyConfigured, MissingExtra, ImportError, TypeError, ValueError) as error:
            self.problem = f"{error}"
            return
        if isinstance(backend, RecordingBackend):
            self.is_smtp, self.signer, self.host = True, backend.signer, str(backend.host).lower()

    @property
    def owner(self) -> str:
        """The name of its provider, empty if that is not a known one."""
        return self.provider.name if self.provider else ""

    @property
    def provider(self) -> _Provider | None:
        """The provider that its host belongs to, if it is a known one."""
        return next((it for it in _PROVIDERS if re.fullmatch(it.host, self.host)), None)


def _domains(given: Sequence[str], equipped: Sequence[_Equipped]) -> set[str]:
    """Return the From domains of a site. Raises ``ImproperlyConfigured`` for an invalid one."""
    found = set()
    for domain in given:
        if not ascii_domain(domain) or "." not in domain:
            raise ImproperlyConfigured(f"A domain such as example.com is needed; it is {domain!r}.")
        found.add(ascii_domain(domain))
    addresses = [settings.DEFAULT_FROM_EMAIL, settings.SERVER_EMAIL]
    rows = EmailLog.objects.using(router.db_for_write(EmailLog)).order_by("-pk")
    with contextlib.suppress(DatabaseError):  # the doctor reports it
        addresses += rows.values_list("from_email", flat=True)[:_RECENT]
    found |= {ascii_domain(parseaddr(it)[1].rpartition("@")[2]) for it in set(addresses)}
    for it in equipped:
        found |= {key.domain for key in (it.signer.keys if it.signer else ()) if key.domain}
        found.add(ascii_domain((transports.envelope_from(it.alias) or "").rpartition("@")[2]))
    return {it for it in found if "." in it}


def _asked(
    domain: str,
    transport: str,
    name: str,
    question: Callable[..., Iterator[tuple[str, str, str]]],
    *context: Any,
) -> Iterator[Record]:
    """Yield what a question found, or that it could not be asked."""
    try:
        for level, text, publish in list(question(domain, *context)):
            yield Record(domain, transport, name, level, text, publish)
    except NotAsked:
        yield Record(domain, transport, name, "not asked", "The DNS did not answer.")


_Answers = Iterator[tuple[str, str, str]]


def _spf(domain: str, lookups: Lookups, transport: _Equipped) -> _Answers:
    """Check the SPF record; the envelope's sender is the address of From."""
    if not transport.is_smtp:
        yield "not asked", transport.problem or "Its API decides who is the envelope's sender.", ""
        return
    provider = transport.provider
    wanted = f"include:{provider.spf}" if provider else f"a:{transport.host}"
    if not provider and _public_addresses(transport.host, lookups) == []:
        wanted = "ip4:ADDRESS-OF-YOUR-SERVER"
    found = read_spf(domain, lookups)
    if found.record is None:
        yield "error", "There is none.", f"{domain} TXT v=spf1 {wanted} ~all"
        return
    if found.problem:
        yield "error", f"Receivers ignore it: {found.problem}.", f"{domain} TXT (one valid record)"
        return
    if found.default == "+":
        weaker = re.sub(r"\s\+?all\b.*", " ~all", found.record, flags=re.IGNORECASE)
        yield "error", "It lets every server send for the domain (+all).", f"{domain} TXT {weaker}"
        return
    if provider:
        is_listed: bool | None = provider.spf in found.includes
    else:
        is_listed = _lists_host(found, transport, lookups)
    if is_listed is False:
        publish = f"{domain} TXT {found.record.replace('v=spf1', f'v=spf1 {wanted}', 1)}"
        if provider:
            yield "error", f"It does not list {provider.name}.", publish
        else:
            told = f"It does not list {transport.host}: add it if it delivers mail itself."
            yield "warning", told, publish if transport.host.endswith(f".{domain}") else ""
    elif is_listed is None:
        yield "ok", "It is valid; which address this host sends from is not known here.", ""
    elif found.default == "?":
        yield "warning", "It says nothing of other servers: end it with ~all or -all.", ""
    else:
        yield "ok", f"It lists {transport.owner or transport.host}.", ""


def _lists_host(found: SPF, transport: _Equipped, lookups: Lookups) -> bool | None:
    """Return whether SPF lists the addresses of a host; ``None`` if it has no public ones."""
    public = _public_addresses(transport.host, lookups)
    return all(found.allows(it) for it in public) if public else None


def _public_addresses(host: str, lookups: Lookups) -> list[str]:
    try:
        addresses = [str(ip_address(host))]
    except ValueError:
        addresses = [] if host == "localhost" else lookups.addresses(host)
    return [it for it in addresses if ip_address(it).is_global]


def _dkim(domain: str, lookups: Lookups, transport: _Equipped) -> _Answers:
    """Compare the records of the keys that sign; else look for those of the provider."""
    if transport.problem or not transport.is_smtp:
        yield "not asked", transport.problem or "Its provider signs: see its console.", ""
        return
    keys = transport.signer.keys_for(domain) if transport.signer else []
    for key in keys:
        yield _compare(f"{key.selector}._domainkey.{key.domain or domain}", key, lookups)
    if keys:
        return
    provider = transport.provider
    for selector in provider.selectors if provider else ():
        if lookups.texts(f"{selector}._domainkey.{domain}"):
            yield "ok", f"{transport.owner} has a key here: {selector}.", ""
            return
    if provider:
        told = f"Nobody signs: turn DKIM on in the console of {provider.name}; publish its keys."
    else:
        told = "This transport does not sign; set its option dkim, unless the server signs."
    yield "warning", told, ""


def _compare(name: str, key: Key, lookups: Lookups) -> tuple[str, str, str]:
    """Return what is wrong with the published record of a key."""
    publish = f"{name} TXT {key.record}"
    records = lookups.texts(name)
    if not records:
        return "error", f"{name} does not exist: receivers cannot verify.", publish
    published, own = _tags(records[0]), _tags(key.record)
    if len(records) > 1:
        return "error", f"{name} has {len(records)} records; receivers take any.", publish
    if published.get("p") == "":
        return "error", f"{name} is revoked (p is empty).", publish
    if published.get("k", "rsa") != own["k"] or "".join(published.get("p", "").split()) != own["p"]:
        return "error", f"{name} holds another key than the one that signs.", publish
    if published.get("v", "DKIM1") != "DKIM1":
        return "error", f"{name} has a version that receivers ignore.", publish
    if "y" in published.get("t", "").split(":"):
        return "warning", f"{name} says that it is a test (t=y).", publish
    return "ok", f"{name} holds the key that signs ({key.algorithm}).", ""


def _dmarc(domain: str, lookups: Lookups, equipped: Sequence[_Equipped]) -> _Answers:
    """Check the policy, and whether our signatures align with From under it."""
    suggestion = f"_dmarc.{domain} TXT v=DMARC1; p=none; rua=mailto:dmarc@{domain}"
    place, records = domain, _policies(domain, lookups)
    while not records and place.count(".") > 1:
        place = place.partition(".")[2]
        records = _policies(place, lookups)
    if not records:
        yield "error", "There is none; large providers want one of bulk senders.", suggestion
        return
    if len(records) > 1:
        told = f"_dmarc.{place} has {len(records)} records: receivers ignore all."
        yield "error", told, suggestion
        return
    tags = _tags(records[0])
    policy = tags.get("p" if place == domain else "sp", tags.get("p", "")).lower()
    if policy not in ("none", "quarantine", "reject"):
        told = f"Its policy is {policy[:20]!r}: none, quarantine or reject is wanted."
        yield "error", told, suggestion
        return
    signing = {
        key.domain or domain for it in equipped if it.signer for key in it.signer.keys_for(domain)
    }
    if tags.get("adkim", "r").lower() == "s" and signing and domain not in signing:
        ours = ", ".join(sorted(signing))
        told = f"adkim=s wants signatures by {domain} itself; ours are by {ours}."
        yield "error", told, f"_dmarc.{place} TXT {records[0].replace('adkim=s', 'adkim=r')}"
        return
    aligned = ["SPF (the envelope's sender is From)", *(f"DKIM ({it})" for it in sorted(signing))]
    told = f"p={policy} by _dmarc.{place}; aligned: {', '.join(aligned)}."
    if "rua" not in tags:
        publish = f"_dmarc.{place} TXT {records[0].rstrip('; ')}; rua=mailto:dmarc@{domain}"
        yield "warning", f"{told} Nobody receives reports (rua).", publish
    else:
        yield "ok", told, ""


def _policies(domain: str, lookups: Lookups) -> list[str]:
    return [it for it in lookups.texts(f"_dmarc.{domain}") if re.match(r"v\s*=\s*DMARC1\b", it)]


def _mx(domain: str, lookups: Lookups) -> _Answers:
    """Check that bounces, which go to the envelope's sender, can arrive."""
    hosts = lookups.mail_hosts(domain)
    publish = f"{domain} MX 10 mail.{domain}"
    if hosts == [""]:
        yield "error", "It takes no mail (null MX), so bounces are lost.", publish
    elif not hosts and lookups.addresses(domain):
        yield "warning", "There is none; bounces go to the host of that name.", publish
    elif not hosts:
        yield "error", "There is none, so bounces are lost.", publish
    elif missing := [it for it in hosts[:5] if not lookups.addresses(it)]:
        yield "error", f"Hosts without an address: {', '.join(missing)}.", publish
    else:
        yield "ok", f"Bounces go to {hosts[0]}.", ""


def _from(domain: str, equipped: Sequence[_Equipped]) -> Iterator[Record]:
    """Find a From that only a free mailer may use."""
    owner = _FREE_MAILERS.get(domain)
    if owner is not None and any(it.owner != owner for it in equipped):
        told = f"{domain} lets nobody else send for it: send from a domain of your own."
        yield Record(domain, "*", "From", "error", told)


def _one_click() -> Iterator[Record]:
    """Find bulk mail without one-click unsubscribe (RFC 8058)."""
    if any(rule.unsubscribe for rule in conf.get().routes):
        told = "Rules of ROUTES offer it."
        yield Record("*", "*", "One-click", "ok", told)
    else:
        told = "No rule of ROUTES has unsubscribe, which bulk mail needs (more than 5,000 a day)."
        yield Record("*", "*", "One-click", "warning", told)


def _tags(record: str) -> dict[str, str]:
    """Return the tags of a record, by name (RFC 6376, section 3.2)."""
    pairs = (tag.partition("=") for tag in record.split(";") if "=" in tag)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
