"""Send 600 mails of which one in ten is bad, and measure how late the good ones are.

    python -m benchmarks.bad_mail --rate 60

A process sends on PostgreSQL with durable commits, to a real SMTP server that has one fault at a
time for the bad mails. The first run has no fault and is what the others are compared with.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.kills import set_up
from devservers.postgres import PostgresServer
from devservers.process import free_port, wait_until
from devservers.smtp import SMTPServer
from devservers.smtp_actions import Action, Drop, Reply, Stage
from devservers.smtp_faults import Rule
from devservers.smtp_session import Session

_MAILS = 600
_EACH = 10

_FAULTS: dict[str, tuple[Stage, Action] | None] = {
    "none": None,
    "recipient refused for good (550 5.1.1)": ("rcpt", Reply(550, "5.1.1 No such user")),
    "content refused for good (554 5.7.1)": ("content", Reply(554, "5.7.1 Spam")),
    "greylisted (451 4.7.1)": ("rcpt", Reply(451, "4.7.1 Greylisted")),
    "suspicious content (421 4.7.0)": ("content", Reply(421, "4.7.0 Suspicious content")),
    "content too large (552 5.3.4)": ("content", Reply(552, "5.3.4 Too large")),
    "throttled (450 4.2.1)": ("rcpt", Reply(450, "4.2.1 Too many messages to this recipient")),
    "reply lost": ("content", Drop(accepted=True)),
}


def main() -> None:
    """Make a run for each fault, and print how late the good mails were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=60, help="mails queued in a second")
    rate = parser.parse_args().rate
    port = free_port()
    print(f"\n| one in {_EACH} | good mails, p50 | p95 | latest |\n|---|---|---|---|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder, durable=True))
        postgres.create_database("epica_mail")
        set_up(postgres.django_settings("epica_mail"), port)
        for name, fault in _FAULTS.items():
            found = sorted(_run(port, fault, rate))
            shown = (found[int(len(found) * share)] for share in (0.5, 0.95))
            p50, p95 = (f"{seconds * 1000:.0f} ms" for seconds in shown)
            print(f"| {name} | {p50} | {p95} | {found[-1] * 1000:.0f} ms |", flush=True)


def _run(port: int, fault: tuple[Stage, Action] | None, rate: float) -> list[float]:
    """Return for how many seconds each good mail was under way."""
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox
    from django_epica_mail.models import DeliveryGate, EmailLog

    EmailLog.objects.all().delete()
    DeliveryGate.objects.all().delete()
    with delivering(), SMTPServer(port=port) as smtp:
        if fault is not None:
            stage, action = fault
            smtp.inject(Rule(stage, action, _is_bad))
        began = time.monotonic()
        for number in range(_MAILS):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            to = f"{'bad' if number % _EACH == 0 else 'good'}{number}@d{number % 50}.example"
            message = EmailMessage("S", "Body " * 50, f"from{number % 50}@example.com", [to])
            outbox.enqueue(message, queue="emails", transport="smtp")
        sent = EmailLog.objects.filter(status="sent", recipients__address__startswith="good")
        expected = _MAILS - _MAILS // _EACH
        wait_until(lambda: sent.count() == expected, timeout=120, what="the good mails")
    times = sent.values_list("created_at", "finished_at")
    return [(finished - created).total_seconds() for created, finished in times if finished]


def _is_bad(session: Session) -> bool:
    addresses = [*session.recipients, session.recipient or ""]
    return any(address.startswith("bad") for address in addresses)


@contextmanager
def delivering(pause: float = 0.005) -> Iterator[None]:
    """Deliver in a process of its own, which is forked before any thread is started.

    It looks for mail, and then waits for ``pause`` seconds.
    """
    from django.db import connections

    from django_epica_mail.delivery import worker

    connections.close_all()
    child = os.fork()
    if child == 0:
        while True:
            worker.deliver("emails")
            time.sleep(pause)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
