"""DKIM signatures and their keys; dkimpy's own verifier is the judge."""

from __future__ import annotations

import base64
import re
import sys
from email.message import EmailMessage as Part
from email.policy import SMTP
from pathlib import Path
from typing import Any

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from django.core.exceptions import ImproperlyConfigured
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import InvalidMessage, MissingExtra
from django_epica_mail.transports import dkim

RSA = rsa.generate_private_key(65537, 2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
PEM = serialization.Encoding.PEM


def pem(key: Any, form: str = "PKCS8", password: bytes | None = None) -> bytes:
    lock: Any = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    written: bytes = key.private_bytes(PEM, getattr(serialization.PrivateFormat, form), lock)
    return written


def seed() -> bytes:
    raw = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw)
    return base64.b64encode(ED25519.private_bytes(*raw, serialization.NoEncryption()))


def signer(tmp_path: Path, *keys: tuple[bytes, dict[str, str]]) -> dkim.Signer:
    forms = []
    for number, (text, form) in enumerate(keys):
        file = tmp_path / f"key{number}"
        file.write_bytes(text)
        forms.append({"selector": f"s{number}", "key_file": str(file), **form})
    return dkim.Signer(dkim.load(forms))


def published(signer: dkim.Signer, domain: str = "example.com") -> dict[str, str]:
    """Return the records that the keys of a signer ask for, as the DNS would hold them."""
    return {f"{key.selector}._domainkey.{key.domain or domain}.": key.record for key in signer.keys}


def verdicts(content: bytes, records: dict[str, str]) -> list[bool]:
    """Return what dkimpy says of each signature of a message."""

    def answer(name: bytes, timeout: int = 5) -> bytes | None:
        found = records.get(name.decode())
        return found.encode() if found is not None else None

    def verdict(index: int) -> bool:
        try:
            return bool(dkimpy.DKIM(content).verify(idx=index, dnsfunc=answer))
        except dkimpy.ValidationError:  # the body's hash
            return False

    return [verdict(n) for n in range(len(re.findall(rb"^DKIM-Signature:", content, re.MULTILINE)))]


def a_mail(sender: str = "Shop <shop@example.com>", body: str = "Hello\r\n") -> bytes:
    part = Part(policy=SMTP)
    part["From"], part["To"], part["Subject"] = sender, "to@example.org", "Şükran"
    part["List-Unsubscribe"] = "<https://example.com/u>"
    part["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    part.set_content(body, cte="8bit")
    return part.as_bytes()


KEYS = [pem(RSA), pem(RSA, "TraditionalOpenSSL"), pem(ED25519), seed()]


@pytest.mark.parametrize("text", KEYS, ids=["rsa pkcs8", "rsa pkcs1", "ed25519 pem", "dknewkey"])
def test_a_signature_verifies_by_the_record_to_publish(text: bytes, tmp_path: Path) -> None:
    by = signer(tmp_path, (text, {}))
    signed = by.sign(a_mail())
    assert signed.endswith(a_mail())
    assert verdicts(signed, published(by)) == [True]
    assert max(map(len, signed.split(b"\r\n"))) <= 78


def test_both_algorithms_sign_a_mail_of_a_domain_with_two_keys(tmp_path: Path) -> None:
    by = signer(tmp_path, *[(text, {"domain": "example.com"}) for text in (pem(RSA), seed())])
    signed = by.sign(a_mail())
    assert re.findall(rb" a=([\w-]+);", signed) == [b"rsa-sha256", b"ed25519-sha256"]
    assert verdicts(signed, published(by)) == [True, True]


@pytest.mark.parametrize(
    ("change", "into"),
    [
        (b"Hello", b"Hallo"),
        (b"To: to@", b"To: me@"),
        (b"One-Click", b"One-Clack"),
        (b"From: Shop", b"From: other@example.net\r\nFrom: Shop"),
        (b"To: to@", b"Cc: more@example.org\r\nTo: to@"),
        (b"List-Unsubscribe: <https://example.com", b"List-Unsubscribe: <https://example.net"),
    ],
)
def test_a_changed_mail_does_not_verify(change: bytes, into: bytes, tmp_path: Path) -> None:
    by = signer(tmp_path, (seed(), {}))
    signed = by.sign(a_mail())
    assert change in signed
    assert verdicts(signed.replace(change, into, 1), published(by)) == [False]


@pytest.mark.parametrize(
    ("sender", "signing"),
    [
        ("a@example.com", ["example.com"]),
        ("a@EXAMPLE.com", ["example.com"]),
        ("a@news.example.com", ["news.example.com"]),
        ("a@deep.news.example.com", ["news.example.com"]),
        ("a@other.example.com", ["example.com"]),
        ("a@notexample.com", ["notexample.com"]),
        ('"x, <y@example.com>" <a@example.net>', ["example.net"]),
        ("a@münchen.example", ["xn--mnchen-3ya.example"]),
    ],
)
def test_the_senders_domain_decides_which_key_signs(
    sender: str, signing: list[str], tmp_path: Path
) -> None:
    by = signer(
        tmp_path,
        (seed(), {"domain": "example.com"}),
        (seed(), {"domain": "News.Example.com"}),
        (seed(), {}),
    )
    header = f"From: {sender}\r\nSubject: x\r\n\r\nBody\r\n".encode()
    signed = by.sign(header)
    assert re.findall(rb" d=([\w.-]+);", signed) == [domain.encode() for domain in signing]
    assert verdicts(signed, published(by, signing[0])) == [True]


@pytest.mark.parametrize(
    ("sender", "form"),
    [
        ("a@example.net", {"domain": "example.com"}),
        ("nobody", {}),
        ("", {}),
        (f"a@{'ä' * 70}.example", {}),
    ],
)
def test_a_mail_of_another_domain_is_not_signed(
    sender: str, form: dict[str, str], tmp_path: Path
) -> None:
    by = signer(tmp_path, (seed(), form))
    content = f"From: {sender}\r\n\r\nBody".encode()
    assert by.sign(content) == content


BODIES = st.lists(
    st.text(
        st.characters(exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", codec="utf-8"),
        max_size=90,
    )
    | st.sampled_from(["", ".", "..", " ", "\t", "  x ", "x\t \t"]),
    max_size=6,
)


@given(
    lines=BODIES,
    subject=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    ending=st.sampled_from(["", "\r\n", "\r\n\r\n"]),
)
def test_any_mail_verifies(
    lines: list[str], subject: str, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    by = signer(tmp_path_factory.getbasetemp(), (seed(), {}))
    body = "\r\n".join(lines) + ending
    content = f"From: a@example.com\r\nSubject: {subject}\r\n\r\n{body}".encode()
    assert verdicts(by.sign(content), published(by)) == [True]


@given(
    st.lists(
        st.sampled_from([b" ", b"\t", b"\r\n", b"\r", b"\n", b"x", b"  ", b"y z"]), max_size=20
    )
)
def test_the_body_is_canonicalized_as_dkimpy_does(pieces: list[bytes]) -> None:
    _, body = dkimpy.rfc822_parse(b"\r\n\r\n" + b"".join(pieces))
    assert dkim.relaxed_body(b"".join(pieces)) == Relaxed.canonicalize_body(
        body.removeprefix(b"\r\n")
    )


@pytest.mark.parametrize("content", [b"no header at all\r\n\r\n", b" folded first\r\n\r\n"])
def test_a_mail_that_cannot_be_parsed_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="DKIM"):
        signer(tmp_path, (seed(), {})).sign(content)


def test_a_key_comes_from_an_environment_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", pem(ED25519).decode().replace("\n", "\\n"))
    (key,) = dkim.load({"selector": "s", "key_env": "THE_KEY"})
    assert key.algorithm == "ed25519-sha256"


FILE = {"selector": "s", "key_file": "/nowhere/key"}


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("key", "must be a dict with selector and key_file"),
        ([], "must be a dict with selector and key_file"),
        (["key"], r"dkim\[0\] must be a dict"),
        ({**FILE, "header": "x"}, "unknown keys: header"),
        ({"selector": "s"}, "either key_file, a path, or key_env"),
        ({**FILE, "key_env": "X"}, "either key_file, a path, or key_env"),
        ({**FILE, "selector": ""}, r"'selector'\] must be a DNS name; it is ''"),
        ({**FILE, "selector": "a b"}, "must be a DNS name"),
        ({**FILE, "domain": "ex ample"}, r"'domain'\] must be a DNS name"),
        ({**FILE, "domain": 5}, "must be a DNS name; it is 5"),
        (FILE, r"'/nowhere/key', which cannot be read \(FileNotFoundError\)"),
        ({**FILE, "key_file": 5}, "cannot be read"),
        ({"selector": "s", "key_env": "NO_SUCH_KEY"}, "'NO_SUCH_KEY', which is not set"),
    ],
)
def test_a_wrong_option_is_explained(form: Any, told: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=told):
        dkim.load(form)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"not a key", "no usable private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "no usable private key",
        ),
        (base64.b64encode(b"too short"), "no usable private key"),
        (pem(ED25519, password=b"secret"), "without a password"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "RSA or Ed25519"),
        (RSA.public_key().public_bytes(PEM, serialization.PublicFormat.PKCS1), "private"),
    ],
)
def test_an_unusable_key_is_explained_and_not_shown(text: bytes, told: str, tmp_path) -> None:
    with pytest.raises(ImproperlyConfigured, match=told) as caught:
        signer(tmp_path, (text, {}))
    assert not isinstance(caught.value, dkim.UnreadableKey)
    assert text[30:60].decode().strip() not in str(caught.value) or len(text) < 30


def test_an_rsa_key_that_receivers_ignore_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dkim, "_MIN_RSA_BITS", 4096)
    with pytest.raises(ImproperlyConfigured, match="2048 bits, which receivers ignore"):
        signer(tmp_path, (pem(RSA), {}))


def test_a_key_does_not_show_itself(tmp_path: Path) -> None:
    by = signer(tmp_path, (pem(RSA), {}))
    number = str(RSA.private_numbers().d)
    assert number not in repr(by.keys)
    assert "private" not in repr(by.keys)


@pytest.mark.parametrize("package", ["dkim", "cryptography"])
def test_a_missing_package_is_named_with_its_extra(package, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r'"django-epica-mail\[dkim\]"'):
        signer(tmp_path, (pem(RSA), {}))
