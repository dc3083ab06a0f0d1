"""Run a provider that speaks the HTTP APIs of SendGrid and Amazon SES, and fails on demand."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

KEY = "the-key"
"""The API key of SendGrid that is let in."""


@dataclass(frozen=True)
class Taken:
    """One mail that the provider took."""

    api: str
    id: str
    recipients: tuple[str, ...]
    metadata: Mapping[str, str]
    request: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class _Fault:
    status: int | None
    """The status it answers with; ``None``: it takes the mail and says nothing."""
    headers: Mapping[str, str]
    error: str


class Provider:
    """A server on 127.0.0.1, in threads of this process.

    SendGrid's ``POST /v3/mail/send`` is at ``sendgrid_url``, Amazon SES's version 2 ``SendEmail``
    at ``amazon_url``. Requests that those would refuse are refused in their words.
    """

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.requests = 0
        self._faults: deque[_Fault] = deque()
        self._released = threading.Event()
        provider = self

        class Handler(_Handler):
            server_of = provider

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True)
        port = self._server.server_address[1]
        self.sendgrid_url = f"http://127.0.0.1:{port}/v3/"
        self.amazon_url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(
        self, status: int, *, error: str = "", times: int = 1, headers: Mapping[str, str] = {}
    ) -> None:
        """Answer the next requests with an error; ``error`` names Amazon's."""
        self._faults.extend([_Fault(status, dict(headers), error)] * times)

    def lose_answer(self, *, times: int = 1) -> None:
        """Take the next mails, and say nothing until the client has gone."""
        self._faults.extend([_Fault(None, {}, "")] * times)

    def forget(self) -> None:
        """Forget faults, and what was taken."""
        self._released.set()
        self._released = threading.Event()
        self._faults.clear()
        self.taken.clear()
        self.requests = 0

    def next_fault(self) -> _Fault | None:
        """Return what goes wrong with the next request."""
        self.requests += 1
        return self._faults.popleft() if self._faults else None

    def say_nothing(self) -> None:
        """Wait as long as there is a client that waits, or a test."""
        self._released.wait(30)


class _RefusedError(Exception):
    """A request is one that the provider does not take."""

    def __init__(self, status: int, error: str, words: str) -> None:
        super().__init__(words)
        self.status, self.error, self.words = status, error, words


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Provider

    def do_POST(self) -> None:
        provider = self.server_of
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_sendgrid = self.path == "/v3/mail/send"
        fault = provider.next_fault()
        try:
            if fault is not None and fault.status is not None:
                raise _RefusedError(fault.status, fault.error, "as the test wants it")
            if not is_sendgrid and self.path != "/v2/email/outbound-emails":
                raise _RefusedError(404, "NotFoundException", self.path)
            taken = self._sendgrid(body) if is_sendgrid else self._amazon(body)
        except _RefusedError as refused:
            headers = fault.headers if fault is not None else {}
            self._refuse(is_sendgrid, refused, headers)
            return
        provider.taken.append(taken)
        if fault is not None:
            provider.say_nothing()
            self.close_connection = True
        elif is_sendgrid:
            self._answer(202, b"", {"X-Message-Id": taken.id})
        else:
            self._answer(200, json.dumps({"MessageId": taken.id}).encode(), {})

    def _sendgrid(self, body: bytes) -> Taken:
        """Return the mail that a request to SendGrid's v3 API is."""
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
        """Return the mail that a request to Amazon SES's v2 API is."""
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

    def _refuse(
        self, is_sendgrid: bool, refused: _RefusedError, headers: Mapping[str, str]
    ) -> None:
        if is_sendgrid:
            said: dict[str, Any] = {"errors": [{"message": refused.words, "field": refused.error}]}
            self._answer(refused.status, json.dumps(said).encode(), headers)
        else:
            body = json.dumps({"message": refused.words}).encode()
            self._answer(refused.status, body, {"x-amzn-ErrorType": refused.error, **headers})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""
