"""Run a DNS server that answers from records given by the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from devservers.service import Service

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TTL = 60


class DNSServer(Service):
    """A DNS server on a UDP port of 127.0.0.1, in a thread of this process.

    ``records`` holds the answers by name and type in the form of a zone file, as in
    ``{("example.com", "TXT"): ['"v=spf1"']}``. A name without records does not exist.
    """

    def __init__(self, records: Mapping[tuple[str, str], Sequence[str]] = {}) -> None:
        self.records = dict(records)
        self.silent = False
        """Whether it leaves every question unanswered."""
        self.asked: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="dns server", daemon=True)
        self._ended = threading.Event()

    @property
    def address(self) -> str:
        """The server as ``host:port``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Answer questions from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering questions, and free the port."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", ("127.0.0.1", self.port))  # wakes the thread
        self._thread.join()
        self._socket.close()

    def publish(self, name: str, kind: str, *values: str) -> None:
        """Replace the records of a name; a TXT record is given without quotes."""
        texts = [_quoted(value) if kind == "TXT" else value for value in values]
        self.records[name.lower(), kind] = texts

    def _serve(self) -> None:
        while not self._ended.is_set():
            data, client = self._socket.recvfrom(65535)
            if self.silent or not data:
                continue
            with contextlib.suppress(dns.exception.DNSException):
                self._socket.sendto(self._answer(data), client)

    def _answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query, our_payload=65535)
        response.flags |= dns.flags.AA | dns.flags.RA
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        owner = name
        while alias := self.records.get((owner, "CNAME")):
            response.answer.append(_rrset(owner, "CNAME", alias))
            owner = alias[0].rstrip(".").lower()
        if values := self.records.get((owner, kind)):
            response.answer.append(_rrset(owner, kind, values))
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire(max_size=65535)


def _rrset(name: str, kind: str, values: Sequence[str]) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(f"{name}.", _TTL, "IN", kind, values)


def _quoted(text: str) -> str:
    """Return a text as a TXT record in strings of at most 255 characters (RFC 1035)."""
    pieces = [text[at : at + 255] for at in range(0, len(text), 255)] or [""]
    return " ".join(f'"{piece}"' for piece in pieces)
