"""Run a provider with the HTTP APIs of four real ones that fails on demand."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from devservers.http_service import HTTPService

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = "the-key"
"""The only SendGrid API key that is accepted."""


@dataclass(frozen=True)
class Taken:
    """One mail that the provider accepted."""

    api: str
    id: str
    recipients: tuple[str, ...]
    metadata: Mapping[str, str]
    request: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class _Fault:
    status: int | None
    """The status of the answer; ``None`` accepts the mail and sends no answer."""
    headers: Mapping[str, str]
    error: str


class Provider(HTTPService):
    """A provider on 127.0.0.1, in threads of this process.

    SendGrid's ``POST /v3/mail/send`` is at ``sendgrid_url``, version 2 of Amazon SES's
    ``SendEmail`` at ``amazon_url``, Resend's ``POST /emails`` at ``resend_url`` and Brevo's
    ``POST /v3/smtp/email`` at ``brevo_url``, both with idempotency keys. Requests that these would
    refuse are refused with their error messages.
    """

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.requests = 0
        self.keys: dict[str, Taken] = {}
        self._faults: deque[_Fault] = deque()
        self._released = threading.Event()
        provider = self

        class Handler(_Handler):
            server_of = provider

        super().__init__(Handler)
        self.sendgrid_url = f"http://127.0.0.1:{self.port}/v3/"
        self.amazon_url = f"http://127.0.0.1:{self.port}"
        self.resend_url = f"http://127.0.0.1:{self.port}/resend/"
        self.brevo_url = f"http://127.0.0.1:{self.port}/brevo/"

    def stop(self) -> None:
        """Release clients that wait for an answer, and stop."""
        self._released.set()
        super().stop()

    def fail(
        self, status: int, *, error: str = "", times: int = 1, headers: Mapping[str, str] = {}
    ) -> None:
        """Answer the next ``times`` requests with ``status``; ``error`` is Amazon's error type."""
        self._faults.extend([_Fault(status, dict(headers), error)] * times)

    def lose_answer(self, *, times: int = 1) -> None:
        """Accept the next ``times`` mails without answering before the client gives up."""
        self._faults.extend([_Fault(None, {}, "")] * times)

    def forget(self) -> None:
        """Forget faults and accepted mails."""
        self._released.set()
        self._released = threading.Event()
        self._faults.clear()
        self.taken.clear()
        self.keys.clear()
        self.requests = 0

    def next_fault(self) -> _Fault | None:
        """Return the fault of the next request, if any, and count the request."""
        self.requests += 1
        return self._faults.popleft() if self._faults else None

    def withhold_answer(self) -> None:
        """Wait until the test ends or forgets faults, or for longer than any client waits."""
        self._released.wait(30)


class _RefusedError(Exception):
    """The provider refuses the request."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Provider

    def do_POST(self) -> None:
        provider = self.server_of
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = provider.next_fault()
        apis = {
            "/v3/mail/send": ("sendgrid", self._sendgrid),
            "/v2/email/outbound-emails": ("amazon", self._amazon),
            "/resend/emails": ("resend", self._resend),
            "/brevo/smtp/email": ("brevo", self._brevo),
        }
        api, take = apis.get(self.path, ("amazon", self._amazon))
        try:
            if fault is not None and fault.status is not None:
                raise _RefusedError(fault.status, fault.error, "requested by the test")
            if self.path not in apis:
                raise _RefusedError(404, "NotFoundException", self.path)
            taken = take(body)
        except _RefusedError as refused:
            self._refuse(api, refused, fault.headers if fault is not None else {})
            return
        if taken not in provider.taken:  # otherwise the key was used before
            provider.taken.append(taken)
        if fault is not None:
            provider.withhold_answer()
            self.close_connection = True
        elif api == "sendgrid":
            self._answer(202, b"", {"X-Message-Id": taken.id})
        else:
            name = {"amazon": "MessageId", "resend": "id", "brevo": "messageId"}[api]
            self._answer(200, json.dumps({name: taken.id}).encode(), {})

    def _resend(self, body: bytes) -> Taken:
        """Return the mail in a request to Resend's API, or the one that its key stands for."""
        request = json.loads(body)
        recipients = [it for name in ("to", "cc", "bcc") for it in request.get(name, ())]
        key = self.headers.get("Idempotency-Key", "")
        known = self.server_of.keys.get(key)
        if known is not None and known.request != request:
            raise _RefusedError(409, "invalid_idempotent_request", "Same key, other payload")
        taken = known or Taken("resend", uuid.uuid4().hex, tuple(recipients), {}, request)
        if key:
            self.server_of.keys[key] = taken
        return taken

    def _brevo(self, body: bytes) -> Taken:
        """Return the mail in a request to Brevo's API; a key that was used before is refused."""
        request = json.loads(body)
        recipients = [it["email"] for name in ("to", "cc", "bcc") for it in request.get(name, ())]
        key = request.get("headers", {}).get("idempotencyKey", "")
        if key in self.server_of.keys:
            raise _RefusedError(400, "duplicate_parameter", "idempotencyKey was used before")
        taken = Taken("brevo", f"<{uuid.uuid4().hex}@brevo>", tuple(recipients), {}, request)
        if key:
            self.server_of.keys[key] = taken
        return taken

    def _sendgrid(self, body: bytes) -> Taken:
        """Return the mail in a request to SendGrid's v3 API."""
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            raise _RefusedError(401, "", "The provided authorization grant is invalid")
        request = json.loads(body)
        people = request.get("personalizations") or [{}]
        if not all(it.get("to") for it in people):
            raise _RefusedError(400, "personalizations.to", "The to array is required")
        if not request.get("from", {}).get("email"):
            raise _RefusedError(400, "from", "The from object must be provided")
        if not request.get("content") and not request.get("template_id"):
            raise _RefusedError(
                400, "content", "Unless a valid template_id is provided, it is required"
            )
        recipients = [
            one["email"]
            for it in people
            for name in ("to", "cc", "bcc")
            for one in it.get(name, ())
        ]
        if len({address.lower() for address in recipients}) < len(recipients):
            raise _RefusedError(400, "personalizations", "Each email address must be unique")
        metadata = {**request.get("custom_args", {}), **people[0].get("custom_args", {})}
        return Taken("sendgrid", uuid.uuid4().hex, tuple(recipients), metadata, request)

    def _amazon(self, body: bytes) -> Taken:
        """Return the mail in a request to Amazon SES's v2 API."""
        if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            raise _RefusedError(403, "MissingAuthenticationTokenException", "Missing token")
        request = json.loads(body)
        wire = base64.b64decode(request["Content"]["Raw"]["Data"])
        message = message_from_bytes(wire, policy=policy.default)
        if not message["From"]:
            raise _RefusedError(400, "BadRequestException", "Missing final '@domain'")
        to = request.get("Destination", {})
        recipients = [one for name in ("To", "Cc", "Bcc") for one in to.get(f"{name}Addresses", ())]
        if not 0 < len(recipients) <= 50:
            raise _RefusedError(400, "MessageRejected", "Recipient count is not 1 to 50")
        metadata = json.loads(str(message["X-Metadata"] or "{}").replace("\r\n", ""))
        return Taken("amazon", f"0100-{uuid.uuid4()}-000000", tuple(recipients), metadata, request)

    def _refuse(self, api: str, refused: _RefusedError, headers: Mapping[str, str]) -> None:
        message = refused.message
        bodies: dict[str, dict[str, Any]] = {
            "sendgrid": {"errors": [{"message": message, "field": refused.error}]},
            "amazon": {"message": message},
            "resend": {"statusCode": refused.status, "name": refused.error, "message": message},
            "brevo": {"code": refused.error, "message": message},
        }
        if api == "amazon":
            headers = {"x-amzn-ErrorType": refused.error, **headers}
        self._answer(refused.status, json.dumps(bodies[api]).encode(), headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(OSError):  # the client may have disconnected
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""
