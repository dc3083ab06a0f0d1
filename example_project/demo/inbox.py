"""A mailbox for every address: a small SMTP server and a web page that lists its mails.

Mail to ``gone@...`` is taken as well, and bounces. Mail to ``THROTTLED`` is refused for a while, as
by a server that gets too much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from html import escape
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from aiosmtpd.controller import Controller

from devservers.http_service import HTTPService
from devservers.process import free_port

if TYPE_CHECKING:
    from email.message import EmailMessage
    from pathlib import Path

    from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"
THROTTLED = "first@busy.example.com"
THROTTLED_SECONDS = 100.0
"""Seconds after the first try for which mail to ``THROTTLED`` is refused."""
BOUNCE = """\
From: MAILER-DAEMON@mx.example.com
To: {sender}
Subject: Undelivered mail returned to sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=report

--report
Content-Type: text/plain

Nobody has the address {recipient}.

--report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com

Final-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 No such user

--report--
"""


@dataclass(frozen=True)
class Received:
    """One mail as the SMTP server received it."""

    at: datetime
    recipients: tuple[str, ...]
    content: bytes

    def message(self) -> EmailMessage:
        """Parse the content."""
        return message_from_bytes(self.content, policy=policy.default)

    def body(self, kind: str) -> str:
        """Return the "plain" or "html" body, or "" if there is none."""
        part = self.message().get_body((kind,))
        return part.get_content() if part else ""


class Inbox(HTTPService):
    """Both servers, and the mails received. Bounces go to the Maildir ``bounces``."""

    def __init__(self, bounces: Path) -> None:
        self.received: list[Received] = []
        self.bounces = bounces
        self.throttled_at: float | None = None
        for name in ("tmp", "new", "cur"):
            (bounces / name).mkdir(parents=True)
        self.smtp_port = free_port()
        self._smtp = Controller(self, hostname=HOST, port=self.smtp_port)
        super().__init__(page_handler(self))
        self.url = f"http://{HOST}:{self.port}/"

    def start(self) -> None:
        """Start both servers."""
        self._smtp.start()
        super().start()

    def stop(self) -> None:
        """Stop both servers."""
        super().stop()
        self._smtp.stop()

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take a recipient, or ask for less mail; aiosmtpd calls this for each RCPT."""
        if address == THROTTLED:
            self.throttled_at = self.throttled_at or time.monotonic()
            if time.monotonic() - self.throttled_at < THROTTLED_SECONDS:
                return "451 4.7.1 Too many mails at once; slow down"
        envelope.rcpt_tos.append(address)
        return "250 Accepted"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep a mail; aiosmtpd calls this after DATA."""
        content = envelope.content
        raw = content if isinstance(content, bytes) else (content or "").encode()
        self.received.append(Received(datetime.now().astimezone(), (*envelope.rcpt_tos,), raw))
        for recipient in envelope.rcpt_tos:
            if recipient.startswith("gone@"):
                self.bounce(envelope.mail_from or "", recipient)
        return "250 Accepted"

    def bounce(self, sender: str, recipient: str) -> None:
        """Return a bounce to the sender of a mail whose recipient does not exist."""
        name = f"{len(self.received)}.demo"
        (self.bounces / "tmp" / name).write_text(BOUNCE.format(sender=sender, recipient=recipient))
        (self.bounces / "tmp" / name).rename(self.bounces / "new" / name)


def page_handler(inbox: Inbox) -> type[BaseHTTPRequestHandler]:
    """Return the request handler of the inbox: `/` is the list, `/3` the fourth mail."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mails = inbox.received
            number = self.path.removeprefix("/")
            if not number:
                self.answer(200, list_page(mails))
            elif number.isdecimal() and int(number) < len(mails):
                self.answer(200, mail_page(mails[int(number)]))
            else:
                self.answer(404, page("Not found", "<p>There is no such mail.</p>"))

        def answer(self, status: int, html: str) -> None:
            content = html.encode("utf-8", "surrogateescape")
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header(
                "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"
            )
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Log nothing: the terminal is for the demo's output."""

    return Handler


def list_page(mails: list[Received]) -> str:
    """Render the list, newest first; it reloads itself."""
    rows = "".join(
        f"<tr><td>{mail.at:%H:%M:%S}</td><td>{escape(header(mail, 'From'))}</td>"
        f"<td>{escape(', '.join(mail.recipients))}</td>"
        f'<td><a href="/{number}">{escape(header(mail, "Subject")) or "…"}</a></td></tr>'
        for number, mail in reversed(list(enumerate(mails)))
    )
    head = "<tr><th>At</th><th>From</th><th>To</th><th>Subject</th></tr>"
    title = f"{len(mails)} mails received"
    return page(title, f"<table>{head}{rows}</table>", '<meta http-equiv="refresh" content="5">')


def mail_page(mail: Received) -> str:
    """Render one mail: its bodies as text, never as HTML, and its source."""
    parts = [
        ("Text", mail.body("plain")),
        ("HTML, as text", mail.body("html")),
        ("Source", mail.content.decode("utf-8", "replace")),
    ]
    html = "".join(f"<h2>{title}</h2><pre>{escape(text)}</pre>" for title, text in parts if text)
    lines = f"<p>From {escape(header(mail, 'From'))}<br>To {escape(', '.join(mail.recipients))}</p>"
    return page(header(mail, "Subject"), f'<p><a href="/">All mails</a></p>{lines}{html}')


def header(mail: Received, name: str) -> str:
    """Return a decoded header, or "" if it is missing."""
    return str(mail.message()[name] or "")


def page(title: str, body: str, head: str = "") -> str:
    """Render a page; `title` is text, `body` and `head` are HTML."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{head}
<title>{escape(title)}</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }}
  table {{ width: 100%; border-collapse: collapse }}
  th, td {{ text-align: start; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #8884 }}
  pre {{ white-space: pre-wrap; border: 1px solid #8884; padding: .6rem }}
</style></head>
<body><h1>{escape(title)}</h1>{body}</body></html>
"""
