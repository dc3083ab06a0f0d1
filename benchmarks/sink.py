"""An SMTP server for benchmarks: it counts accepted mail and throws it away.

    python -m benchmarks.sink DELAY

It prints two ports. On the first it speaks SMTP and sends each reply ``DELAY`` seconds late, as
over a network with that round-trip time. A client of the second receives the counts as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any

_NUMBER = re.compile(rb"^Subject: Mail (\d+)", re.MULTILINE)
_MOST_TIMES = 1000
"""The times of arrival are reported for no more mails."""

_GREETING = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


class Sink:
    """The counts of accepted mail, and the handlers of both ports."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.arrived: Counter[int] = Counter()
        self.times: dict[int, float] = {}
        self.first = self.last = 0.0
        self.connections = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Conduct one SMTP dialogue."""
        self.connections += 1
        loop = asyncio.get_running_loop()

        def say(reply: bytes) -> None:
            if self.delay:
                loop.call_later(self.delay, writer.write, reply)
            else:
                writer.write(reply)

        say(b"220 sink ESMTP\r\n")
        try:
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    say(_GREETING)
                elif verb == b"DATA":
                    say(b"354 Go ahead\r\n")
                    self.keep(await reader.readuntil(b"\r\n.\r\n"))
                    say(b"250 Accepted\r\n")
                elif verb == b"QUIT":
                    writer.write(b"221 Bye\r\n")
                    break
                else:
                    say(b"250 Ok\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def keep(self, content: bytes) -> None:
        """Count a mail by the number in its subject."""
        self.last = time.time()
        self.first = self.first or self.last
        match = _NUMBER.search(content)
        number = int(match[1]) if match else -1
        self.arrived[number] += 1
        self.times.setdefault(number, self.last)

    async def report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write the counts."""
        counts: dict[str, Any] = {
            "distinct": len(self.arrived),
            "total": self.arrived.total(),
            "first": self.first,
            "last": self.last,
            "connections": self.connections,
            "times": self.times if len(self.times) <= _MOST_TIMES else {},
        }
        writer.write(json.dumps(counts).encode())
        await writer.drain()
        writer.close()


async def _main() -> None:
    sink = Sink(float(sys.argv[1]))
    smtp = await asyncio.start_server(sink.talk, "127.0.0.1", 0, limit=1 << 24)
    control = await asyncio.start_server(sink.report, "127.0.0.1", 0)
    ports = [server.sockets[0].getsockname()[1] for server in (smtp, control)]
    print(*ports, flush=True)
    await asyncio.gather(smtp.serve_forever(), control.serve_forever())


if __name__ == "__main__":
    asyncio.run(_main())
