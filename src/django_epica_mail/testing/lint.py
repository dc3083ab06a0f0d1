"""A lint of mail: what readers, mail clients and providers would stumble over.

Nothing asks the network, so links are judged by what they say.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

from django.core.mail import EmailMessage

from django_epica_mail import conf
from django_epica_mail.messages.bounds import CLIPPED_BYTES
from django_epica_mail.queueing.rendering import samples
from django_epica_mail.queueing.rendering.render import render, speaking
from django_epica_mail.tracking.instrument import tags

RULES = MappingProxyType(
    {
        "subject-missing": "The mail has no subject.",
        "text-missing": "The mail has HTML, but no plain text: filters distrust such mail, and "
        "some readers see nothing.",
        "left-over": "{what!r} in the {part} is part of a template that nothing has replaced.",
        "variable-missing": "The template asks for the variable {what!r}, which its sample context "
        "lacks.",
        "link-empty": "The {tag} {words!r} leads nowhere: its address is {what!r}.",
        "link-relative": "The {tag} {words!r} has the address {what!r} without a scheme and a "
        "domain, which a mail client cannot complete.",
        "link-placeholder": "The {tag} {words!r} leads to {what!r}, which is reserved for examples "
        "or names the reader's own computer or network.",
        "image-alt": 'The image {what!r} has no alt attribute: give it a text, or alt="" if it '
        "only decorates.",
        "unsubscribe-missing": "Bulk mail has no {what} header, which Gmail and Yahoo require "
        "(RFC 8058): queue it with unsubscribe=True.",
        "size": "The HTML has {what} bytes; Gmail hides what follows the first {most}.",
        "error": "The template cannot be rendered: {what}",
    }
)
"""The rules, each with what it says of a finding."""

LEFT_OVER = re.compile(r"\{\{|\{%|%\(\w{1,50}\)[sd]")
"""What a template's language or a translation's placeholder leaves behind."""

_MOST_CHARACTERS = 400_000
"""Characters of HTML that are read; what is longer than Gmail shows is a finding anyway."""
_MOST_FINDINGS = 100
"""Findings of one mail."""
_MOST_WORDS = 1000
"""Characters of HTML within a link that are read."""
_SHOWN = 200
"""Characters of foreign text in a finding."""

_RESERVED = (
    *("example", "invalid", "localhost", "test", "local", "localdomain", "internal"),
    *("example.com", "example.net", "example.org"),
)
"""Domains that lead nowhere, or not to the same place for everybody (RFC 2606, RFC 6761, ...)."""
_SCHEMES_OF_PAGES = ("http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about a mail that should be otherwise."""

    rule: str
    """One of ``RULES``, by which it can be ignored."""
    text: str
    """What is wrong, and what to do."""
    template: str = ""
    language: str = ""
    """Of the template that was linted, if it was one."""

    def __str__(self) -> str:
        return f"{self.text} ({self.rule})"


def lint_mail(
    message: EmailMessage,
    *,
    bulk: bool = False,
    ignore: Iterable[str] = (),
    hosts: Iterable[str] = (),
) -> list[Finding]:
    """Return what is wrong with a message: 100 findings at most, in the order of ``RULES``.

    ``bulk`` mail must let its readers unsubscribe. The queue adds the headers for this at delivery,
    so lint what ``drain_email_queue`` returns. ``ignore`` are names of rules. ``hosts`` are domains
    in links that are all right although they are reserved for examples. Raises ``ValueError`` for
    an unknown rule.
    """
    alternatives = getattr(message, "alternatives", None) or ()
    markup = next((str(it[0]) for it in alternatives if it[1] == "text/html"), "")
    text = str(message.body or "")
    if message.content_subtype == "html" and not markup:
        text, markup = "", text
    found = _of_content(str(message.subject or ""), text, markup, frozenset(hosts))
    return _kept([*found, *(_of_bulk(message) if bulk else ())], ignore)


def assert_mail_is_clean(
    message: EmailMessage,
    *,
    bulk: bool = False,
    ignore: Iterable[str] = (),
    hosts: Iterable[str] = (),
) -> None:
    """Assert that ``lint_mail`` finds nothing wrong with a message.

    The arguments are those of ``lint_mail``. Raises ``AssertionError``, which lists the findings.
    """
    if found := lint_mail(message, bulk=bulk, ignore=ignore, hosts=hosts):
        listed = "\n".join(f"  {it}" for it in found)
        raise AssertionError(f"The mail {str(message.subject)[:_SHOWN]!r} is not clean:\n{listed}")


def lint_templates(
    templates: Iterable[str] | None = None,
    languages: Iterable[str] | None = None,
    *,
    ignore: Iterable[str] = (),
) -> list[Finding]:
    """Return what is wrong with templates of ``PREVIEWS``, in each of the languages.

    By default, these are all of ``PREVIEWS``, and the languages that the site offers. Domains that
    a sample context itself names are no finding: they are samples. Raises ``ValueError`` for an
    unknown template, language or rule, or if there is no template at all.
    """
    known, ignore = conf.get().previews, tuple(ignore)
    names = list(templates or ()) or sorted(known)
    if not names:
        raise ValueError(
            "There is nothing to lint: EPICA_MAIL['PREVIEWS'] names no template. Add yours, each "
            "with a sample context."
        )
    if unknown := [it for it in names if it not in known]:
        raise ValueError(f"EPICA_MAIL['PREVIEWS'] does not name the template {unknown[0]!r}.")
    codes = list(languages or ()) or samples.languages()
    return [
        replace(it, template=name, language=code)
        for name in names
        for code in codes
        for it in _kept(_of_template(name, code), ignore)
    ]


def _of_template(template: str, language: str) -> list[Finding]:
    with speaking(language):
        try:
            values = samples.context_of(template)
            mail = render(template, values)
            missing = samples.missing_variables(template, values)
        except Exception as error:  # noqa: BLE001 - whatever a template raises is the finding
            return [_finding("error", what=f"{type(error).__name__}: {error}")]
    hosts = frozenset(re.findall(r"https?://([\w.-]{1,253})", repr(values)))
    return [
        *(_finding("variable-missing", what=name) for name in missing),
        *_of_content(mail.subject, mail.text, mail.html or "", hosts),
    ]


def _kept(found: Iterable[Finding], ignore: Iterable[str]) -> list[Finding]:
    """Return findings without those ignored and those said twice, in the order of ``RULES``."""
    ignored, order = frozenset(ignore), list(RULES)
    if unknown := ignored - RULES.keys():
        raise ValueError(f"{min(unknown)!r} is not a rule; the rules are: {', '.join(order)}.")
    kept = dict.fromkeys(it for it in found if it.rule not in ignored)
    return sorted(kept, key=lambda it: order.index(it.rule))[:_MOST_FINDINGS]


def _finding(rule: str, **values: object) -> Finding:
    shown = {name: it[:_SHOWN] if isinstance(it, str) else it for name, it in values.items()}
    return Finding(rule=rule, text=RULES[rule].format(**shown))


def _of_content(
    subject: str | None, text: str, markup: str, hosts: frozenset[str]
) -> Iterator[Finding]:
    if subject is not None and not subject.strip():
        yield _finding("subject-missing")
    if markup and not text.strip():
        yield _finding("text-missing")
    for part, content in (("subject", subject or ""), ("text", text), ("HTML", markup)):
        for mark in dict.fromkeys(LEFT_OVER.findall(content)):
            yield _finding("left-over", what=mark, part=part)
    if (size := len(markup.encode(errors="replace"))) > CLIPPED_BYTES:
        yield _finding("size", what=size, most=CLIPPED_BYTES)
    links = list(_links(markup[:_MOST_CHARACTERS]))
    for link in links:
        if not link.has_alt:
            yield _finding("image-alt", what=link.address)
        if (rule := _judge(link, hosts)) is not None:
            yield _finding(rule, tag=link.tag, words=link.words, what=link.address)
    known = {link.address for link in links}  # a text that is derived from the HTML repeats them
    for address in re.findall(r"https?://[^\s<>\"']{1,2000}", text[:_MOST_CHARACTERS]):
        link = _Link("link", address, "in the text")
        if address not in known and (rule := _judge(link, hosts)) is not None:
            yield _finding(rule, tag=link.tag, words=link.words, what=address)


def _of_bulk(message: EmailMessage) -> Iterator[Finding]:
    names = {name.lower() for name in message.extra_headers}
    for name in ("List-Unsubscribe", "List-Unsubscribe-Post"):
        if name.lower() not in names:
            yield _finding("unsubscribe-missing", what=name)


class _Link(NamedTuple):
    """Something that a mail's HTML points to."""

    tag: str
    address: str
    words: str
    """What stands for it on the page."""
    has_alt: bool = True


def _links(text: str) -> Iterator[_Link]:
    """Yield the links and the images of HTML."""
    opened: tuple[str, int] | None = None
    for tag in tags(text):
        given = {name: text[start:end] for name, (start, end) in (tag.attributes or {}).items()}
        if opened is not None and (tag.name == "a" or "href" in given):
            yield _Link("link", opened[0], _words(text[opened[1] : tag.start]))
            opened = None
        if tag.name in ("a", "area") and "href" in given:
            opened = html.unescape(given["href"]).strip(), tag.end
        elif tag.name == "img" and tag.attributes is not None:
            address, alt = html.unescape(given.get("src", "")).strip(), given.get("alt")
            yield _Link("image", address, _words(alt or ""), has_alt=alt is not None)
    if opened is not None:
        yield _Link("link", opened[0], _words(text[opened[1] :]))


def _words(markup: str) -> str:
    """Return what stands in a piece of HTML, for people; of a long one, the beginning."""
    return " ".join(html.unescape(re.sub(r"<[^<>]*>", " ", markup[:_MOST_WORDS])).split())


def _judge(link: _Link, hosts: frozenset[str]) -> str | None:
    """Return the rule that an address breaks, if it breaks one."""
    address = link.address
    if LEFT_OVER.search(address):
        return None  # a finding of its own
    if address in ("", "#") or address.lower().startswith("javascript:"):
        return "link-empty"
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:  # such as brackets that are no IPv6 address
        return "link-empty"
    if not parts.scheme:
        return None if address.startswith("#") else "link-relative"
    if parts.scheme not in _SCHEMES_OF_PAGES:
        return None
    if not host:
        return "link-empty"
    is_allowed = host in hosts or parts.netloc.rpartition("@")[2] in hosts
    return "link-placeholder" if _is_reserved(host) and not is_allowed else None


def _is_reserved(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        is_within = any(f".{host}".endswith(f".{it}") for it in _RESERVED)
        return is_within or "." not in host
