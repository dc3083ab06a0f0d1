"""Python's MIME objects are rebuilt exactly: headers, payload, policy."""

from __future__ import annotations

import email
import email.message
import email.policy
import hashlib
import json
import sys
from base64 import encodebytes
from collections.abc import Iterator
from email.charset import QP, Charset
from email.header import Header
from email.headerregistry import Address
from email.message import Message, MIMEPart
from email.mime.application import MIMEApplication
from email.mime.audio import MIMEAudio
from email.mime.base import MIMEBase
from email.mime.image import MIMEImage
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import HTTP, SMTP, SMTPUTF8, compat32, default
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import UnstorableMessage
from django_epica_mail.messages.mime import find_class, pack, unpack
from tests import corpus

POLICIES = [compat32, default, SMTP, SMTPUTF8, HTTP, default.clone(refold_source="all")]


class Store(dict[str, bytes]):
    """Content passed to ``keep``, by digest; ``names_and_types`` describes each."""

    def __init__(self) -> None:
        self.names_and_types: list[tuple[str, str]] = []

    def keep(self, content: bytes, filename: str, mimetype: str) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self[digest] = content
        self.names_and_types.append((filename, mimetype))
        return digest


def round_trip(part: Message) -> tuple[Any, Store]:
    store = Store()
    form = json.loads(json.dumps(pack(part, store.keep)))
    return unpack(form, store.__getitem__), store


def state(part: Any) -> Any:
    """Return everything a MIME object consists of, and each header as written."""
    if isinstance(part, list):
        return [state(item) for item in part]
    if not isinstance(part, Message):
        return part
    headers = [(name, type(value).__name__, str(value)) for name, value in part.raw_items()]
    rest = {name: state(value) for name, value in vars(part).items() if name not in NOT_COMPARED}
    folded = [part.policy.fold(name, value) for name, value in part.raw_items()]
    return type(part), headers, folded, rest, str(part.get_charset()), repr(part.policy)


NOT_COMPARED = {"policy", "_headers", "_charset", "defects"}


def set_content(policy: Any = default, **headers: Any) -> MIMEPart:
    part = MIMEPart(policy=policy)
    part.set_content("ışık " * 30, subtype="html", cte="quoted-printable", filename="ışık.html")
    for name, value in headers.items():
        part[name.replace("_", "-")] = value
    return part


def legacy(part: Any, **headers: Any) -> Any:
    for name, value in headers.items():
        part.add_header(name.replace("_", "-"), value)
    part.add_header("Content-Disposition", "attachment", filename=("utf-8", "tr", "ışık.png"))
    return part


def multipart() -> MIMEMultipart:
    part = MIMEMultipart("signed", boundary="b", protocol="application/pgp-signature")
    part.preamble, part.epilogue = "before", "after"
    part.attach(MIMEText("ğ", "plain", "utf-8"))
    part.attach(MIMEText("ü", "plain", "iso-8859-1"))
    part.attach(MIMEApplication(b"signature", "pgp-signature"))
    return part


def digest() -> MIMEMultipart:
    part = MIMEMultipart("digest", boundary="d")
    inner = MIMEMessage(email.message_from_string("Subject: a\n\nb\n"))
    inner.set_default_type("message/rfc822")
    del inner["Content-Type"]
    part.attach(inner)
    return part


def parsed(policy: Any) -> Message:
    raw = (
        b"Subject: =?utf-8?q?=C4=9F?= and a folded\r\n  line\r\nX-8bit: \xc4\x9f\r\n"
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n'
        b"--x\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"QUJD\r\n" * 5000 + b"\r\n"
        b"--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\xc4\x9f\r\n--x--\r\n"
    )
    return email.message_from_bytes(raw, policy=policy)


def quoted() -> MIMEText:
    charset = Charset("utf-8")
    charset.body_encoding = QP
    return MIMEText("ışık", _charset=charset)


PARTS: dict[str, Any] = {
    "image": lambda: legacy(MIMEImage(corpus.PNG, "png"), Content_ID="<a@b>"),
    "audio": lambda: legacy(MIMEAudio(b"RIFF", "wav")),
    "text": lambda: legacy(MIMEText("a\n", "csv")),
    "text_in_utf8": lambda: MIMEText("ışık", "plain", "utf-8"),
    "text_in_own_charset": quoted,
    "long_text": lambda: MIMEText("a line\n" * 2000),
    "base_without_payload": lambda: MIMEBase("application", "x-own"),
    "multipart": multipart,
    "digest": digest,
    "modern": lambda: set_content(),
    "modern_headers": lambda: set_content(
        To=[Address("Ayşe, Y.", "a", "example.com"), "b@example.com"],
        Date="Mon, 01 Jan 2001 00:00:00 +0300",
        Message_ID="<a.very.long.identifier." + "x" * 70 + "@example.com>",
        X_Text="=?utf-8?q?=C4=9F?= " + "ışık " * 30,
        Content_Language="tr",
    ),
    "modern_in_smtp_policy": lambda: set_content(SMTP, X_Text="ışık " * 30),
    "python_message": lambda: corpus.attached_python_message().attachments[0].content,
    "parsed_legacy": lambda: parsed(compat32),
    "parsed_modern": lambda: parsed(default),
}


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_a_part_is_rebuilt_with_all_its_state(make: Any) -> None:
    part = make()
    before = state(part)
    back, _ = round_trip(part)
    assert state(back) == before
    assert state(part) == before


def test_a_legacy_header_object_is_written_unchanged() -> None:
    part = MIMEText("a")
    part["X-Light"] = Header("ışık " * 20, "utf-8", header_name="X-Light")
    back, _ = round_trip(part)
    assert isinstance(back["X-Light"], Header)
    assert back.as_bytes() == part.as_bytes()


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("policy", [compat32, default, SMTP], ids=["compat32", "default", "SMTP"])
def test_a_part_is_written_with_the_same_bytes(make: Any, policy: Any) -> None:
    back, _ = round_trip(make())
    assert back.as_bytes(policy=policy) == make().as_bytes(policy=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_part_keeps_its_policy(policy: Any) -> None:
    back, _ = round_trip(Message(policy=policy))
    names = ("max_line_length", "linesep", "cte_type", "mangle_from_", "utf8", "refold_source")
    assert [getattr(back.policy, name, None) for name in names] == [
        getattr(policy, name, None) for name in names
    ]


@given(st.binary(max_size=300))
def test_a_base64_payload_is_stored_decoded(content: bytes) -> None:
    part = MIMEApplication(content, "pdf", name="a.pdf")
    back, store = round_trip(part)
    assert list(store.values()) == [content]
    assert store.names_and_types == [("a.pdf", "application/pdf")]
    assert back.get_payload() == part.get_payload()


@pytest.mark.parametrize(
    "payload",
    ["QUJD", "QUJD\r\n", "not base64", "QU\nJD\n", "=", "ğ", encodebytes(b"a" * 99) + b""],
)
def test_a_payload_in_another_form_is_stored_unchanged(payload: Any) -> None:
    part = MIMEBase("application", "pdf")
    part["Content-Transfer-Encoding"] = "base64"
    part.set_payload(payload if isinstance(payload, str) else payload.decode())
    back, _ = round_trip(part)
    assert back.get_payload() == part.get_payload()


def test_only_large_text_is_stored_outside_the_json() -> None:
    assert not round_trip(MIMEText("short"))[1]
    assert list(round_trip(MIMEText("a" * 5000))[1].values()) == [b"a" * 5000]


class Own(MIMEBase):
    """A site's own class, with its own state."""

    def __init__(self, token: object) -> None:
        super().__init__("application", "x-own")
        self.token = token


def test_a_sites_own_class_keeps_its_state_without_its_init() -> None:
    back, _ = round_trip(Own(b"token"))
    assert type(back) is Own
    assert back.token == b"token"


def test_a_missing_class_becomes_a_plain_part() -> None:
    form = {**pack(Own("token"), Store().keep), "class": "gone:Own"}
    back = unpack(form, {}.__getitem__)
    assert type(back) is MIMEPart
    assert back.get_content_type() == "application/x-own"


@pytest.mark.parametrize("payload", [b"bytes", object(), ["text"], Message()])
def test_a_payload_that_is_neither_text_nor_parts_is_refused(payload: Any) -> None:
    part = MIMEBase("application", "x-own")
    part._payload = payload
    with pytest.raises(UnstorableMessage, match=r"MIMEBase .*application/x-own.*Attach its"):
        pack(part, Store().keep)


def test_an_attribute_without_a_json_form_is_refused() -> None:
    with pytest.raises(UnstorableMessage, match=r"Own .*builtins\.object"):
        pack(Own(object()), Store().keep)


def test_a_header_that_cannot_be_rebuilt_is_refused() -> None:
    part = MIMEPart()
    value: Any = default.header_factory("X-A", "ok")
    value._parse_tree = default.header_factory("X-A", "another")._parse_tree
    part.set_raw("X-A", value)
    with pytest.raises(UnstorableMessage, match="'X-A'"):
        pack(part, Store().keep)


@pytest.mark.parametrize("path", ["json:loads", "gone:A", "json", "", "tests.corpus:Gone.Inner"])
def test_a_path_without_such_a_class_finds_nothing(path: str) -> None:
    assert find_class(path, Message) is None


@pytest.fixture
def stray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a module on the path that leaves a file when somebody imports it; return the file."""
    trace = tmp_path / "imported"
    source = f"from email.message import Message as M\nopen({str(trace)!r}, 'w').close()\n"
    (tmp_path / "stray_module.py").write_text(source + "class Message(M): pass\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield trace
    sys.modules.pop("stray_module", None)


@pytest.mark.parametrize("path", ["stray_module:Message", "stray_module.Message", "stray_module"])
def test_a_stored_path_imports_no_module_that_nobody_listed(stray, path) -> None:
    assert find_class(path, Message) is None
    assert not stray.exists()


def test_classes_of_listed_modules_are_found(stray, settings) -> None:
    settings.EPICA_MAIL = {"MESSAGE_MODULES": ["stray_module"]}
    assert find_class("stray_module:Message", Message) is not None
    for path in ("email.message:Message", "django.core.mail:EmailMessage", "os:system", "email:x"):
        found = find_class(path, object)
        assert (found is None) == path.endswith(("system", ":x"))
    assert find_class("stray_module_too:Message", Message) is None


@pytest.mark.parametrize("policy", [compat32, default])
def test_a_part_that_was_written_before_under_another_policy_is_rebuilt(policy: Any) -> None:
    part = MIMEMultipart("related", policy=policy)
    part.attach(MIMEText("a"))
    whole = MIMEMultipart()
    whole.attach(part)
    whole.as_bytes(policy=SMTP)  # as Django 6 sends it, which gives the part its boundary
    rebuilt, _ = round_trip(part)
    assert rebuilt.as_bytes(policy=SMTP) == part.as_bytes(policy=SMTP)
    assert rebuilt.as_bytes() == part.as_bytes()
