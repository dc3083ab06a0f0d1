"""Measure how much of PostgreSQL's disk finished mail takes, by what the mails hold.

    python -m benchmarks.disk --mails 100000

Each kind of mail is queued and sent by the package itself, in a database of its own, to a backend
that throws it away. Prints a table in Markdown: the size of all tables of mail, with their indexes
and TOAST, after VACUUM, and the WAL that was written meanwhile.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devservers.postgres import PostgresServer

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

# What a mail holds: bytes of text, bytes of HTML, and how long the content is kept.
KINDS = {
    "text of 1 kB": (1_000, 0, "always"),
    "text of 1 kB and HTML of 10 kB": (1_000, 10_000, "always"),
    "text of 2 kB and HTML of 40 kB": (2_000, 40_000, "always"),
    "the same as the second, deleted after sending (`until_sent`)": (1_000, 10_000, "until_sent"),
}
WORDS = [
    "".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=3 + n % 7))
    for n in range(2_000)
]
PORTION = 5_000


def main() -> None:
    """Measure every kind of mail, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mails", type=int, default=100_000)
    mails = parser.parse_args().mails
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as server:
        server.create_database("epica_mail")
        os.environ["EPICA_TEST_DATABASE_URL"] = server.url("epica_mail")
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
        import django
        from django.core.management import call_command
        from django.test import override_settings

        django.setup()
        call_command("migrate", verbosity=0)
        print(f"| {mails:,} mails | MB on disk | kB a mail | MB of WAL | minutes |")
        print("|---|---|---|---|---|")
        with override_settings(**transport()):
            for name, (text, html, keep) in KINDS.items():
                call_command("flush", interactive=False, verbosity=0)
                print(row(name, mails, fill(mails, text, html, keep)), flush=True)


def transport() -> dict[str, Any]:
    """Return settings by which workers of this process send to nobody."""
    import django

    nowhere = {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}
    if django.VERSION >= (6, 1):
        return {"MAILERS": {"default": nowhere, "smtp": nowhere}, "EPICA_MAIL": {}}
    return {"EPICA_MAIL": {"TRANSPORTS": {"smtp": nowhere}}}


def fill(mails: int, text: int, html: int, keep: str) -> tuple[float, float, float]:
    """Queue and send the mails; return MB on disk, MB of WAL, and minutes."""
    from django_epica_mail import outbox
    from django_epica_mail.delivery import worker
    from django_epica_mail.models import EmailLog

    started, wal = time.monotonic(), query("SELECT pg_current_wal_lsn() - '0/0'")
    for first in range(0, mails, PORTION):
        portion = min(PORTION, mails - first)
        outbox.enqueue_many(
            messages(first, portion, text, html),
            transport="smtp",
            keep_content=keep,
            queue="bulk_emails",
        )
        while worker.deliver("bulk_emails"):
            pass
    assert EmailLog.objects.filter(status="sent").count() == mails
    minutes = (time.monotonic() - started) / 60
    written = query("SELECT pg_current_wal_lsn() - '0/0'") - wal
    query("VACUUM (ANALYZE)")
    size = query(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
        "WHERE relkind = 'r' AND relname LIKE 'epica_mail%%'"
    )
    return size / 1e6, written / 1e6, minutes


def messages(first: int, number: int, text: int, html: int) -> Iterator[EmailMessage]:
    """Yield mails that differ, to one recipient each; words are drawn by a seed."""
    from django.core.mail import EmailMultiAlternatives

    for n in range(first, first + number):
        draw = random.Random(n)
        message = EmailMultiAlternatives(
            f"Your order {n}", prose(draw, text), None, [f"customer{n}@example.com"]
        )
        if html:
            message.attach_alternative(markup(draw, html), "text/html")
        yield message


def prose(draw: random.Random, size: int) -> str:
    """Return lines of words, ``size`` characters in all."""
    words = draw.choices(WORDS, k=size // 4)
    lines = [" ".join(words[n : n + 11]) for n in range(0, len(words), 11)]
    return "\n".join(lines)[:size]


def markup(draw: random.Random, size: int) -> str:
    """Return a page whose half is the tags and styles that mail repeats, and half is words."""
    cell = '<tr><td style="padding:12px 24px;font-family:Arial,sans-serif">{}</td></tr>\n'
    rows = []
    while sum(map(len, rows)) < size:
        rows.append(cell.format(prose(draw, len(cell))))
    return f"<html><body><table>{''.join(rows)}</table></body></html>"


def query(sql: str) -> float:
    """Run one statement outside a transaction, and return its first value, or 0."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)
        return float(cursor.fetchone()[0]) if cursor.description else 0.0


def row(name: str, mails: int, found: tuple[float, float, float]) -> str:
    size, wal, minutes = found
    return f"| {name} | {size:,.0f} | {size * 1000 / mails:.1f} | {wal:,.0f} | {minutes:.1f} |"


if __name__ == "__main__":
    main()
