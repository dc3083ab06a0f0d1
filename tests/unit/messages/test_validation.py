"""Errors are raised in the caller, on every version of Django."""

from __future__ import annotations

import copy
import email.message
import tracemalloc
from email.headerregistry import Address
from email.mime.base import MIMEBase
from string import ascii_letters, digits
from typing import Any

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail import message as django_mail
from django.utils.functional import lazystr
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import InvalidHeader, InvalidMessage
from django_epica_mail.messages import check
from django_epica_mail.messages.validation import _is_plain
from tests import corpus


def message(**fields) -> EmailMessage:
    defaults = {
        "subject": "Subject",
        "body": "Body",
        "from_email": "from@example.com",
        "to": ["to@example.com"],
    }
    return EmailMultiAlternatives(**{**defaults, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "a\nBcc: b@example.com"},
        {"headers": {"X-A": "a\r\nb"}},
        {"headers": {"X-A\nBcc": "b@example.com"}},
        {"headers": {"X A": "b"}},
        {"headers": {"Bcc": "b@example.com"}},
        {"headers": {"bCC": "b@example.com"}},
        {"from_email": "a@example.com\nb"},
        {"to": ["a@example.com\nBcc: b@example.com"]},
        {"cc": ["a@example.com\n"]},
        {"bcc": ["a@example.com\r\nb"]},
        {"reply_to": ["a@example.com\nb"]},
    ],
    ids=str,
)
def test_header_injection_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        check(message(**fields))


def test_an_entry_with_two_addresses_is_refused() -> None:
    bad = message(to=["a@example.com, b@example.com"])
    with pytest.raises(ValueError, match=r"."):
        check(bad)


@pytest.mark.parametrize("make", [make for _, make in corpus.CORPUS], ids=dict(corpus.CORPUS))
def test_a_valid_message_passes_unchanged(make) -> None:
    good = make()
    before = copy.copy(vars(good))
    headers = dict(good.extra_headers)
    check(good)
    assert vars(good) == before
    assert good.extra_headers == headers


@pytest.mark.parametrize("name", ["Bcc", "bcc", "BCC"])
def test_a_bcc_header_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(InvalidHeader, match=f"'{name}'.*pass them in the bcc argument"):
        check(message(headers={name: "b@example.com"}))


@pytest.mark.parametrize("name", ["", "X A", "X:A", "X-A\n", "Ünlü", "X\0", 7, lazystr("X-A")])
def test_an_invalid_header_name_is_refused_with_the_rule(name: Any) -> None:
    with pytest.raises(InvalidHeader, match="RFC 5322"):
        check(message(headers={name: "value"}))


def test_header_injection_raises_what_contact_forms_catch() -> None:
    expected = getattr(django_mail, "BadHeaderError", ValueError)
    for fields in ({"subject": "a\nb"}, {"headers": {"X\nA": "b"}}, {"bcc": ["a@b.org\n"]}):
        with pytest.raises(expected):
            check(message(**fields))


def attached(*attachment: Any, **attributes: Any) -> EmailMessage:
    mail = other(**attributes)
    mail.attachments.append(attachment[0] if len(attachment) == 1 else attachment)
    return mail


def alternative(*parts: Any) -> EmailMessage:
    mail: Any = message()
    mail.alternatives.append(parts[0] if len(parts) == 1 else parts)
    return mail


def mime_with(name: str, value: str) -> MIMEBase:
    part: Any = MIMEBase("application", "x-own")
    part.set_raw(name, value)
    return part


def other(**attributes: Any) -> EmailMessage:
    mail = message()
    vars(mail).update(attributes)
    return mail


REFUSED = {
    "media type": (lambda: attached("a", b"x", "pdf"), r"'pdf': pass type and subtype"),
    "half a media type": (lambda: attached("a", b"x", "/pdf"), r"pass type and subtype"),
    "newline in a media type": (lambda: attached("a", b"x", "a/b\nX: y"), "newlines"),
    "file name": (lambda: attached(7, b"x", "a/b"), "file name .* 7: pass a str"),
    "newline in a file name": (lambda: attached("a\nb", b"x", "a/b"), "newlines"),
    "content": (lambda: attached("a", 7, "text/plain"), "'a' .*int: pass bytes"),
    "no content": (lambda: attached("a", None, "text/plain"), "NoneType: pass bytes"),
    "message as binary": (
        lambda: attached("a", message(), "image/png"),
        "Alternatives: pass bytes",
    ),
    "text as attachment": (lambda: attached("name"), "of type str .*pass a MIME object"),
    "long tuple": (lambda: attached(1, 2, 3, 4), "of type tuple"),
    "python message as part": (
        lambda: attached(email.message.Message()),
        f"Message cannot be attached with Django {django.__version__}",
    ),
    "newline in a part": (lambda: attached(mime_with("X-A\nB", "c")), "X-A"),
    "newline in a part's header": (lambda: attached(mime_with("X-A", "c\nB: d")), "X-A|header"),
    "attachment of an attachment": (
        lambda: attached("a", attached("b", 7, "text/plain"), "message/rfc822"),
        "'b' .*int",
    ),
    "header of an attachment": (
        lambda: attached("a", message(subject="a\nb"), "message/rfc822"),
        "[Hh]eader",
    ),
    "header name of an attachment": (
        lambda: attached("a", message(headers={"X A": "b"}), "message/rfc822"),
        "'X A'",
    ),
    "alternative": (lambda: alternative("text"), "of type str .*pass a tuple"),
    "alternative's length": (lambda: alternative("a", "b", "c"), "of type tuple"),
    "alternative's content": (lambda: alternative(object(), "text/html"), "object: pass text"),
    "alternative's media type": (lambda: alternative("a", "html"), "'html': pass type"),
    "no alternative's media type": (lambda: alternative("a", None), "None: pass a str"),
    "alternative that is not text": (lambda: alternative(b"\xff", "text/html"), "Django cannot"),
    "character the encoding lacks": (
        lambda: other(body="10 \u20ac", encoding="iso-8859-1"),
        r"cannot encode .*u20ac.*another encoding",
    ),
    "character of an attachment": (
        lambda: attached("a", "\u20ac", "text/plain", encoding="iso-8859-1"),
        r"u20ac",
    ),
    "unknown encoding": (lambda: other(encoding="nope"), "unknown encoding"),
    "lone surrogate": (lambda: message(body="a\ud800"), r"ud800"),
    "lone surrogate in an attachment": (lambda: attached("a", "\ud800", "text/csv"), r"ud800"),
    "lone surrogate in the subject": (lambda: message(subject="\ud800"), r"ud800"),
    "newline in the subtype": (lambda: other(content_subtype="html\nX: y"), "[Nn]ewline|linefeed"),
    "domain too long": (lambda: message(to=["a@" + "ü" * 64 + ".org"]), "address|label"),
}

if django.VERSION >= (6, 0):  # earlier versions encode any header
    REFUSED["text instead of a message id"] = (
        lambda: message(headers={"Message-ID": "<ş@example.com>"}),
        "cannot encode",
    )
    REFUSED["escaped byte in the subject"] = (
        lambda: message(subject="\udcd3ş"),
        "cannot encode",
    )


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_a_message_that_would_fail_is_refused_with_the_reason(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        check(make())


ADDRESSES = [
    "",
    " ",
    "a b",
    "a@b@c.org",
    "a@example.com, b@example.com",
    "group: a@example.com, b@example.com;",
    "<a@example.com",
    "a@example.com>",
    "a@" + "b" * 64 + ".org",
    "ğ@example.com",
    "a@bücher.example",
    "root",
    "webmaster@localhost",
    "Ayşe Yılmaz <a@example.com>",
    '"Doe, John" <j@example.com>',
    "a..b@example.com",
    "a@[127.0.0.1]",
    Address("Jane", "jane", "example.com"),
]


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
@pytest.mark.parametrize("field", ["from_email", "to", "cc", "bcc"])
def test_an_address_is_refused_if_the_smtp_backend_refuses_it(field: str, address: Any) -> None:
    # With its own headers: only the envelope decides.
    mail = message(headers={"From": "f@example.com", "To": "t@example.com"})
    setattr(mail, field, address if field == "from_email" else ["other@example.com", address])
    assert outcome(check, mail) == outcome(corpus.wire, mail)


def outcome(function: Any, mail: EmailMessage) -> str:
    try:
        function(mail)
    except ValueError:
        return "refused"
    return "taken"


PRINTABLE = st.text(max_size=200).filter(str.isprintable)
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ATOMS = st.text(st.sampled_from(ascii_letters + digits + "_+-"), min_size=1, max_size=70)
LABELS = st.text(st.sampled_from(ascii_letters + digits + "-"), min_size=1, max_size=63)
BARE_ADDRESSES = st.builds(
    "{}@{}".format,
    st.lists(ATOMS, min_size=1, max_size=2).map(".".join),
    st.lists(LABELS, min_size=1, max_size=3).map(".".join),
)
PLAIN_ADDRESSES = BARE_ADDRESSES | st.builds(
    "{} <{}>".format, st.lists(ATOMS, min_size=1, max_size=2).map(" ".join), BARE_ADDRESSES
)
"""All that ``addresses.is_plain`` takes; a strategy made of its pattern takes long."""
HEADERS = st.dictionaries(st.from_regex("[Xx]-[A-Za-z0-9-]{1,60}", fullmatch=True), PRINTABLE)


@given(
    PRINTABLE,
    BODIES,
    st.lists(st.tuples(BODIES, st.sampled_from(["text/html", "text/plain"])), max_size=2),
    st.sampled_from(["plain", "html"]),
    st.lists(PLAIN_ADDRESSES, min_size=1, max_size=5),
    HEADERS,
)
def test_a_message_accepted_without_building_can_be_built(
    subject: str,
    body: str,
    alternatives: list[tuple[str, str]],
    subtype: str,
    addresses: list[str],
    headers: dict[str, str],
) -> None:
    mail = message(
        subject=subject,
        body=body,
        to=addresses,
        cc=addresses[1:2],
        reply_to=addresses[2:],
        headers=headers,
        alternatives=alternatives,
    )
    mail.content_subtype = subtype
    assert _is_plain(mail)
    check(mail)
    assert corpus.wire(mail)[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": lazystr("Subject")},
        {"subject": "a\tb"},
        {"subject": "\ud800"},
        {"body": lazystr("Body")},
        {"body": "\ud800"},
        {"to": [Address("A", "a", "example.com")]},
        {"to": ["", "to@example.com"]},
        {"to": ["\u00fc@example.com"]},
        {"reply_to": ["A, B <a@example.com>"]},
        {"headers": {"Date": "today"}},
        {"headers": {"X-A": 7}},
        {"attachments": [("a.txt", "text", "text/plain")]},
        {"alternatives": [("text", "text/calendar; method=REQUEST")]},
        {"alternatives": [(b"text", "text/html")]},
    ],
    ids=str,
)
def test_a_message_that_django_might_refuse_is_not_plain(fields: dict[str, object]) -> None:
    assert not _is_plain(message(**fields))


def test_a_message_with_build_options_is_not_plain() -> None:
    for name, value in {"encoding": "latin-1", "mixed_subtype": "related"}.items():
        mail = message()
        setattr(mail, name, value)
        assert not _is_plain(mail)


BODY = "secret " * 200


@pytest.mark.parametrize(
    "mail",
    [
        message(body=BODY + "\ud800"),
        other(body=BODY + "\u20ac", encoding="iso-8859-1"),
        alternative(BODY + "\ud800", "text/html"),
        alternative(BODY.encode() + b"\xff", "text/html"),
        attached("a", BODY + "\ud800", "text/plain"),
        attached("a", [BODY], "text/plain"),
    ],
    ids=range(6),
)
def test_an_error_never_contains_the_body(mail: EmailMessage) -> None:
    with pytest.raises(InvalidMessage) as caught:
        check(mail)
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret secret" not in f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize("content", [b"\xff" * 10_000_000, "text" * 2_500_000])
def test_large_content_is_checked_without_building_it(content: Any) -> None:
    mail = attached("a", content, "text/plain" if isinstance(content, str) else "application/pdf")
    check(mail)
    tracemalloc.start()
    try:
        check(mail)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1.5 * len(content)  # building it would take several times as much
