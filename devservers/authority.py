"""Run an authority that issues access tokens of OAuth 2, as Microsoft's and Google's do."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import ssl
import threading
import time
from collections import Counter, deque
from datetime import datetime, timedelta, timezone
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from devservers.http_service import HTTPService

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CLIENT_ID = "11111111-2222-3333-4444-555555555555"
CLIENT_SECRET = "secret-of-the-client-~x7"  # noqa: S105 - of a server in a test
TENANT = "contoso"
_AUDIENCE = "https://oauth2.googleapis.com/token"
"""What google-auth always names, whatever the endpoint."""
_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class TokenAuthority(HTTPService):
    """An authority on 127.0.0.1, in threads of this process, that speaks HTTPS.

    It takes client credentials, refresh tokens and the assertions of one service account, and
    issues tokens for ``mailbox`` that live ``lifetime`` seconds. ``certificate`` in ``folder`` is
    what clients must trust, as by ``REQUESTS_CA_BUNDLE``.
    """

    def __init__(self, folder: Path, mailbox: str, *, lifetime: int = 3600) -> None:
        self.mailbox = mailbox
        self.lifetime = lifetime
        self.certificate = folder / "authority.pem"
        self.requests: Counter[str] = Counter()
        """How many tokens were asked for, by grant type."""
        self.issued: list[str] = []
        """Every access and refresh token that was issued."""
        self.refresh_token = f"refresh-{secrets.token_urlsafe(24)}"
        self.rotates = False
        """Whether each use of a refresh token replaces it."""
        self._lock = threading.Lock()
        self._valid: dict[str, float] = {}
        self._faults: deque[tuple[int, Mapping[str, Any]]] = deque()
        authority = self

        class Handler(_Handler):
            server_of = authority

        self.tls = _tls(self.certificate)
        super().__init__(Handler, self.tls)
        self.url = f"https://127.0.0.1:{self.port}"
        self.token_url = f"{self.url}/token"

    @cached_property
    def _account_key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)

    def service_account(self) -> dict[str, str]:
        """Return the content of the JSON file of a service account of Google Cloud."""
        key = self._account_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "1",
            "private_key": key.decode(),
            "client_email": "mailer@project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": self.token_url,
        }

    def accepts(self, user: str, token: str) -> bool:
        """Return whether a token opens the mailbox of a user now."""
        with self._lock:
            return user == self.mailbox and self._valid.get(token, 0) > time.monotonic()

    def revoke(self) -> None:
        """Make every access token issued so far invalid."""
        with self._lock:
            self._valid.clear()

    def fail(self, status: int, *, times: int = 1, **answer: Any) -> None:
        """Answer the next ``times`` requests for a token with this status and JSON.

        A ``location`` in it is also a header, for a redirect.
        """
        self._faults.extend([(status, answer)] * times)

    def grant(self, form: Mapping[str, str], client: tuple[str, str]) -> tuple[int, Any]:
        """Return the status and the answer of a request for a token."""
        grant = form.get("grant_type", "")
        self.requests[grant] += 1
        if self._faults:
            return self._faults.popleft()
        if grant == _JWT_GRANT:
            if not self._is_of_account(form.get("assertion", "")):
                return 400, {"error": "invalid_grant", "error_description": "Bad assertion"}
        elif client != (CLIENT_ID, CLIENT_SECRET):
            told = "AADSTS7000215: Invalid client secret provided."
            return 401, {"error": "invalid_client", "error_description": told}
        elif grant == "refresh_token":
            if form.get("refresh_token") != self.refresh_token:
                return 400, {"error": "invalid_grant", "error_description": "Token revoked"}
        elif grant != "client_credentials":
            return 400, {"error": "unsupported_grant_type"}
        return 200, self._issue(rotated=grant == "refresh_token" and self.rotates)

    def _issue(self, *, rotated: bool) -> dict[str, Any]:
        token = f"token-{secrets.token_urlsafe(48)}"
        answer = {"token_type": "Bearer", "access_token": token, "expires_in": self.lifetime}
        with self._lock:
            self._valid[token] = time.monotonic() + self.lifetime
            self.issued.append(token)
            if rotated:
                self.refresh_token = f"refresh-{secrets.token_urlsafe(24)}"
                self.issued.append(self.refresh_token)
                answer["refresh_token"] = self.refresh_token
        return answer

    def _is_of_account(self, assertion: str) -> bool:
        """Return whether an assertion is signed for us, the mailbox and the scope of mail."""
        try:
            claims = jwt.decode(
                assertion,
                self._account_key.public_key(),
                algorithms=["RS256"],
                audience=_AUDIENCE,
            )
        except jwt.InvalidTokenError:
            return False
        wanted = (self.mailbox, "https://mail.google.com/")
        return (claims.get("sub"), claims.get("scope")) == wanted


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: TokenAuthority

    def do_GET(self) -> None:
        authority = self.server_of
        if self.path.split("?")[0] != f"/{TENANT}/v2.0/.well-known/openid-configuration":
            self._answer(400, {"error": "invalid_tenant", "error_description": "AADSTS90002"})
            return
        base = f"{authority.url}/{TENANT}"
        self._answer(
            200,
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        client = (form.get("client_id", ""), form.get("client_secret", ""))
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            name, _, secret = base64.b64decode(credentials).decode().partition(":")
            client = (unquote(name), unquote(secret))
        self._answer(*self.server_of.grant(form, client))

    def _answer(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # the client may have disconnected
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", answer["location"])
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


def _tls(path: Path) -> ssl.SSLContext:
    """Write a new certificate for 127.0.0.1 to ``path``, and return what serves it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority.test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = path.with_suffix(".key")
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return context
