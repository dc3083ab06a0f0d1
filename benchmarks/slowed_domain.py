"""Send to a server that takes little mail for one domain, and measure what becomes of the rest.

    python -m benchmarks.slowed_domain --limit 5 --minutes 6

Two processes send on PostgreSQL with durable commits. The server takes so many recipients of one
domain in any second, and answers the others with 451 4.7.1. Mail to another domain is queued at a
steady rate: for the first minute alone, which the others are compared with, and then beside a
backlog of the limited domain.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bad_mail import delivering
from benchmarks.kills import set_up
from devservers.postgres import PostgresServer
from devservers.process import free_port
from devservers.smtp import SMTPServer
from devservers.smtp_faults import DomainLimit

_SLOW, _FAST = "slow.example", "fast.example"


def main() -> None:
    """Make the run, and print a line for each minute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=5, help="mails in any second")
    parser.add_argument("--rate", type=float, default=20, help="mails queued for the other domain")
    parser.add_argument("--minutes", type=int, default=6)
    options = parser.parse_args()
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder, durable=True))
        postgres.create_database("epica_mail")
        set_up(postgres.django_settings("epica_mail"), port)
        for _ in range(2):
            stack.enter_context(delivering())
        smtp = stack.enter_context(SMTPServer(port=port))
        limit = DomainLimit(_SLOW, options.limit)
        smtp.inject(limit)
        print(
            "| minute | taken of the limit | refused | other mail, p50 | p95 |\n"
            "|---|---|---|---|---|"
        )
        p50, p95 = _minute(options.rate)
        print(f"| without | | | {p50} | {p95} |", flush=True)
        _queue(_SLOW, 2 * options.limit * 60 * options.minutes)
        for minute in range(options.minutes):
            began = time.monotonic()
            p50, p95 = _minute(options.rate)
            taken = sum(began <= it < began + 60 for it in limit.taken)
            refused = sum(began <= it < began + 60 for it in limit.refused)
            share, of_all = taken / (60 * options.limit), refused / max(1, taken + refused)
            print(
                f"| {minute + 1} | {share:.0%} | {refused} ({of_all:.1%}) | {p50} | {p95} |",
                flush=True,
            )


def _minute(rate: float) -> tuple[str, str]:
    """Queue mail for a minute; return within which time half of it and 95 % were sent."""
    from django_epica_mail.models import EmailLog

    began = time.monotonic()
    for count in range(int(60 * rate)):
        time.sleep(max(0.0, began + count / rate - time.monotonic()))
        _queue(_FAST, 1)
    time.sleep(max(0.0, began + 60 - time.monotonic()))
    sent = EmailLog.objects.filter(domain=_FAST, status="sent").order_by("-id")
    times = sent.values_list("created_at", "finished_at")[: int(55 * rate)]
    waited = sorted((end - start).total_seconds() for start, end in times if end)
    p50, p95 = (f"{waited[int(len(waited) * share)] * 1000:.0f} ms" for share in (0.5, 0.95))
    return p50, p95


def _queue(domain: str, number: int) -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    messages = (
        EmailMessage("S", "Body " * 50, "from@example.com", [f"to{it}@{domain}"])
        for it in range(number)
    )
    outbox.enqueue_many(messages, queue="emails", transport="smtp")


if __name__ == "__main__":
    main()
