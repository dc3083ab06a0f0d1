"""Send 200 mails to a server whose quota is used up, and count what it is asked in the meantime.

    python -m benchmarks.quota --minutes 30

Two processes send on PostgreSQL with durable commits. For so many minutes the server answers every
mail with 454 4.7.0 "daily message quota exceeded"; then it takes all. The mails have one sender,
so that nothing but the number of refusals shows that the fault is not a mail's own.
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
from devservers.process import free_port, wait_until
from devservers.smtp import SMTPServer
from devservers.smtp_actions import Action, Reply, Stage
from devservers.smtp_session import Session

_MAILS = 200
_LONGEST_PAUSE = 3600.0


class Quota:
    """A behaviour that refuses every mail until ``is_used_up`` is set to false.

    ``refused`` and ``taken`` are the monotonic seconds at which it refused and took a mail.
    """

    def __init__(self) -> None:
        self.is_used_up = True
        self.refused: list[float] = []
        self.taken: list[float] = []

    def __call__(self, stage: Stage, session: Session) -> Action | None:
        """Return the refusal of a mail while the quota is used up."""
        if stage == "mail" and self.is_used_up:
            self.refused.append(time.monotonic())
            return Reply(454, "4.7.0 daily message quota exceeded")
        if stage == "content":
            self.taken.append(time.monotonic())
        return None


def main() -> None:
    """Make the run, and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="for how long it is used up")
    minutes = parser.parse_args().minutes
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = stack.enter_context(PostgresServer(folder, durable=True))
        postgres.create_database("epica_mail")
        set_up(postgres.django_settings("epica_mail"), port)
        _queue()
        for _ in range(2):
            stack.enter_context(delivering(pause=1.0))
        smtp = stack.enter_context(SMTPServer(port=port))
        quota = smtp.inject(Quota())
        time.sleep(60 * minutes)
        quota.is_used_up = False
        ended, pause = time.monotonic(), _pause()
        wait_until(lambda: bool(quota.taken), timeout=_LONGEST_PAUSE, what="a probe")
        wait_until(_is_done, timeout=300, what="the backlog")
        _print(minutes, quota, pause, ended)


def _queue() -> None:
    from django.core.mail import EmailMessage

    from django_epica_mail import outbox

    messages = (
        EmailMessage("S", "Body " * 50, "from@example.com", [f"to{it}@d{it % 50}.example"])
        for it in range(_MAILS)
    )
    outbox.enqueue_many(messages, queue="emails", transport="smtp")


def _is_done() -> bool:
    from django_epica_mail.models import EmailLog

    return EmailLog.objects.filter(status="sent").count() == _MAILS


def _pause() -> float:
    """Return the seconds between the last probe and the next."""
    from django_epica_mail.models import DeliveryGate

    gate = DeliveryGate.objects.get(scope="transport", name="smtp")
    since = gate.probed_at or gate.tripped_at
    assert since is not None
    assert gate.open_until is not None
    return (gate.open_until - since).total_seconds()


def _print(minutes: float, quota: Quota, pause: float, ended: float) -> None:
    from django.db.models import Sum

    from django_epica_mail.models import DeliveryAttempt, EmailLog

    first, last = quota.taken[0], quota.taken[-1]
    tries = EmailLog.objects.aggregate(tries=Sum("tries"))["tries"] - _MAILS
    rows = DeliveryAttempt.objects.count() - _MAILS
    print(
        "\n| minutes | conversations | rows of attempts | tries used | the last pause "
        "| first mail taken after | all taken within |\n|---|---|---|---|---|---|---|\n"
        f"| {minutes:g} | {len(quota.refused)} | {rows} | {tries} | {pause:.0f} s "
        f"| {first - ended:.0f} s | {last - first:.1f} s |",
        flush=True,
    )


if __name__ == "__main__":
    main()
