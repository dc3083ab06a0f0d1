"""DKIM signatures (RFC 6376, RFC 8301, RFC 8463): the option ``dkim`` of a transport.

``dkimpy`` parses and canonicalizes the message, ``cryptography`` signs it: in pure Python, RSA
would cost twenty times as much.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import getaddresses
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.encoding import punycode

from django_epica_mail.exceptions import InvalidMessage, MissingExtra

SIGNED_HEADERS = frozenset(
    (
        *("from", "sender", "reply-to", "subject", "date", "message-id", "to", "cc"),
        *("mime-version", "content-type", "content-transfer-encoding", "content-id"),
        *("in-reply-to", "references", "auto-submitted", "feedback-id"),
        *("list-id", "list-help", "list-unsubscribe", "list-unsubscribe-post"),
        *("list-subscribe", "list-post", "list-owner", "list-archive"),
    )
)
"""RFC 6376, section 5.4.1; RFC 8058, section 4, adds List-Unsubscribe-Post."""
_SEALED = ("from", "reply-to", "subject", "to", "cc", "date", "message-id", "content-type")
"""Headers signed once more than they occur, so that nobody can add another (section 8.15)."""
_MIN_RSA_BITS = 1024
"""RFC 8301, section 3.2: verifiers ignore signatures by shorter keys."""
_KEYS = frozenset({"domain", "selector", "key_file", "key_env"})
_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_MAX_KEY_BYTES = 20_000


class UnreadableKey(ImproperlyConfigured):
    """A private key that this process cannot read, although another may."""


@dataclass(frozen=True, slots=True)
class Key:
    """A private key and the name of its record in the DNS."""

    selector: str
    domain: str | None
    """The signing domain, or ``None`` for the domain of each mail's From."""
    algorithm: str
    """``rsa-sha256`` or ``ed25519-sha256``."""
    private: Any = field(repr=False)

    @property
    def record(self) -> str:
        """The TXT record to publish (RFC 6376, section 3.6.1)."""
        serialization = import_module("cryptography.hazmat.primitives.serialization")
        public, encoding = self.private.public_key(), serialization.Encoding
        if self.algorithm == "rsa-sha256":
            form = serialization.PublicFormat.SubjectPublicKeyInfo
            data, name = public.public_bytes(encoding.DER, form), "rsa"
        else:  # RFC 8463, section 4
            form = serialization.PublicFormat.Raw
            data, name = public.public_bytes(encoding.Raw, form), "ed25519"
        return f"v=DKIM1; k={name}; p={base64.b64encode(data).decode()}"

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the canonical headers."""
        if self.algorithm != "rsa-sha256":  # RFC 8463, section 3: of their SHA-256
            return bytes(self.private.sign(sha256(data).digest()))
        padding = import_module("cryptography.hazmat.primitives.asymmetric.padding")
        hashes = import_module("cryptography.hazmat.primitives.hashes")
        return bytes(self.private.sign(data, padding.PKCS1v15(), hashes.SHA256()))


def load(form: object) -> list[Key]:
    """Return the keys of an option ``dkim``: a dict for one key, or a list of dicts.

    Raises ``ImproperlyConfigured``, or its subclass ``UnreadableKey``, and ``MissingExtra``.
    """
    if isinstance(form, Mapping):
        return [_key(form, "dkim")]
    if not isinstance(form, (list, tuple)) or not form:
        raise ImproperlyConfigured(
            "dkim must be a dict with selector and key_file (or key_env), or a list of such dicts."
        )
    return [_key(it, f"dkim[{number}]") for number, it in enumerate(form)]


class Signer:
    """Signs the mail of one transport."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = keys
        self._dkim = _library("dkim")
        self._relaxed = _library("dkim.canonicalization").Relaxed

    def keys_for(self, domain: str) -> list[Key]:
        """Return the keys that sign mail from a domain: those of its nearest domain that has any.

        A key without a domain signs for every domain, but a key for the domain itself comes first.
        """
        parent = domain
        while parent:
            if found := [key for key in self.keys if key.domain == parent]:
                return found
            parent = parent.partition(".")[2]
        return [key for key in self.keys if key.domain is None]

    def sign(self, content: bytes) -> bytes:
        """Return a message with a signature by each key for its From, before its other headers.

        Without such a key, it is returned unchanged. Raises ``InvalidMessage`` if it cannot be
        parsed.
        """
        head, separator, body = content.partition(b"\r\n\r\n")
        try:
            headers, rest = self._dkim.rfc822_parse(head + separator)
        except (self._dkim.DKIMException, IndexError):
            told = "The headers of this mail are invalid, so DKIM cannot sign it."
            raise InvalidMessage(told) from None
        domain = _from_domain(headers)
        keys = self.keys_for(domain) if domain else []
        if not keys:
            return content
        headers = self._relaxed.canonicalize_headers(headers)
        names = [name for name, _ in headers if name.decode() in SIGNED_HEADERS]
        names += [name.encode() for name in _SEALED]
        digest = base64.b64encode(sha256(relaxed_body(rest + body)).digest())
        signed = b"".join(b"%s:%s" % it for it in self._dkim.select_headers(headers, names))
        tags = (b"c=relaxed/relaxed", b"t=%d" % time.time(), b"h=" + b" : ".join(names))
        value = b"; ".join([*tags, b"bh=" + digest, b"b="])
        lines = [self._header(key, key.domain or domain, value, signed) for key in keys]
        return b"".join([*lines, content])

    def _header(self, key: Key, domain: str, tags: bytes, signed: bytes) -> bytes:
        """Return the header of one signature, folded."""
        start = f" v=1; a={key.algorithm}; d={domain}; s={key.selector}; ".encode()
        value = _fold(start + tags)
        ((_, canonical),) = self._relaxed.canonicalize_headers([(b"dkim-signature", value)])
        signature = key.sign(signed + b"dkim-signature:" + canonical.rstrip())
        text = base64.b64encode(signature)
        pieces = [text[at : at + 70] for at in range(0, len(text), 70)]
        return b"DKIM-Signature:" + value + b"\r\n " + b"\r\n ".join(pieces) + b"\r\n"


def relaxed_body(body: bytes) -> bytes:
    """Return a body in the form that is hashed (RFC 6376, section 3.4.4).

    The same as dkimpy's, whose regular expressions take many times as long.
    """
    if body.count(b"\n") != body.count(b"\r\n"):
        body = _BARE_LF.sub(b"\r\n", body)
    body = body.replace(b"\t", b" ")
    while b"  " in body:
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \r\n", b"\r\n")
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    return body[:end] + b"\r\n" if end else b""


def _fold(value: bytes) -> bytes:
    """Return a header's value with a line break in place of spaces, so that lines are short."""
    lines, line = [], b""
    for word in value.split(b" ")[1:]:
        if line and len(line) + len(word) > 70:
            lines.append(line)
            line = b""
        line += b" " + word
    return b"\r\n".join([*lines, line])


def _from_domain(headers: Sequence[Sequence[bytes]]) -> str:
    """Return the domain of a message's author, in ASCII and lower case; empty if it has none."""
    values = [
        value.decode("utf-8", "replace").replace("\r\n", "")
        for name, value in headers
        if name.lower() == b"from"
    ]
    for _, address in getaddresses(values):
        _, at, domain = address.rpartition("@")
        if at:
            return ascii_domain(domain)
    return ""


def ascii_domain(domain: str) -> str:
    """Return a domain in ASCII and lower case, without a final dot; empty if it is not one."""
    try:
        plain = punycode(domain.strip().rstrip(".")).lower()
    except UnicodeError:
        return ""
    return plain if len(plain) <= 253 and _DOMAIN.fullmatch(plain) else ""


def _key(form: object, name: str) -> Key:
    """Return one key. Raises ``ImproperlyConfigured`` without showing the key itself."""
    if not isinstance(form, Mapping):
        raise ImproperlyConfigured(f"{name} must be a dict; it is a {type(form).__name__}.")
    if unknown := set(form) - _KEYS:
        raise ImproperlyConfigured(
            f"{name} has unknown keys: {', '.join(sorted(map(str, unknown)))}."
        )
    if ("key_file" in form) == ("key_env" in form):
        raise ImproperlyConfigured(
            f"{name} needs either key_file, a path, or key_env, an environment variable's name."
        )
    domain, selector = form.get("domain"), form.get("selector")
    for key, value in (("domain", domain), ("selector", selector)):
        is_valid = isinstance(value, str) and ascii_domain(value)
        if not is_valid and not (key == "domain" and value is None):
            raise ImproperlyConfigured(f"{name}[{key!r}] must be a DNS name; it is {value!r}.")
    private = _private_key(_key_text(form, name), name)
    algorithm = "rsa-sha256" if hasattr(private, "key_size") else "ed25519-sha256"
    if algorithm == "rsa-sha256" and private.key_size < _MIN_RSA_BITS:
        raise ImproperlyConfigured(
            f"{name} has an RSA key of {private.key_size} bits, which receivers ignore "
            "(RFC 8301): make one of 2048."
        )
    return Key(ascii_domain(str(selector)), domain and ascii_domain(domain), algorithm, private)


def _key_text(form: Mapping[str, Any], name: str) -> bytes:
    if "key_env" in form:
        text = os.environ.get(str(form["key_env"]), "")
        if not text:
            raise UnreadableKey(
                f"{name} names the environment variable {form['key_env']!r}, which is not set."
            )
        return text.replace("\\n", "\n").encode()
    try:
        with Path(form["key_file"]).open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except (OSError, TypeError) as error:
        raise UnreadableKey(
            f"{name} names the key file {str(form['key_file'])!r}, which cannot be read "
            f"({type(error).__name__})."
        ) from None


def _private_key(text: bytes, name: str) -> Any:
    """Return the key in a PEM file, or in base64 as dkimpy's ``dknewkey`` writes Ed25519 keys."""
    _library("cryptography")
    asymmetric = "cryptography.hazmat.primitives.asymmetric"
    rsa, ed25519 = import_module(f"{asymmetric}.rsa"), import_module(f"{asymmetric}.ed25519")
    serialization = import_module("cryptography.hazmat.primitives.serialization")
    try:
        if b"-----BEGIN" in text:
            private = serialization.load_pem_private_key(text, password=None)
        else:
            seed = base64.b64decode(text.strip(), validate=True)
            private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    except (
        ValueError,
        TypeError,
        binascii.Error,
        import_module("cryptography.exceptions").UnsupportedAlgorithm,
    ):
        private = None  # the error may show part of the key
    if not isinstance(private, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        raise ImproperlyConfigured(
            f"{name} has no usable private key: it must be RSA or Ed25519, in PEM, without a "
            "password."
        )
    return private


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"The option dkim needs a package that is not installed ({name}): "
            'pip install "django-epica-mail[dkim]".'
        ) from error
