"""Functions that run inside the example project to prepare what a browser test looks at."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

PASSWORD = "correct horse battery"


def set_up() -> None:
    """Create the tables, a superuser ``root``, and a ``viewer`` with view permissions only."""
    from django.contrib.auth.models import Permission, User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("root", password=PASSWORD)
    viewer = User.objects.create_user("viewer", password=PASSWORD, is_staff=True)
    names = ("view_emaillog", "view_emailbatch", "view_deliverygate")
    viewer.user_permissions.set(Permission.objects.filter(codename__in=names))


def send(
    to: str,
    subject: str,
    html: str = "",
    attachments: tuple[tuple[str, str, str], ...] = (),
    **options: Any,
) -> str:
    """Queue one mail and return its id."""
    from django.core.mail import EmailMultiAlternatives

    from django_epica_mail import outbox

    message = EmailMultiAlternatives(subject, "Merhaba,\n\nplain words.", to=[to])
    if html:
        message.attach_alternative(html, "text/html")
    for attachment in attachments:
        message.attach(*attachment)
    return str(outbox.enqueue(message, **options).pk)


def send_tomorrow(to: str, subject: str) -> str:
    """Queue a mail that is due in a day and return its id."""
    from django.utils import timezone

    return send(to, subject, send_at=timezone.now() + timedelta(days=1))


def send_bulk(number: int) -> str:
    """Make a bulk call of ``number`` mails and one invalid entry; return its id."""
    from django_epica_mail.queueing import bulk

    entry = {"message": "B", "from_email": None}
    entries: list[dict[str, Any]] = [
        {**entry, "subject": f"Bülten {n}", "recipient_list": [f"r{n}@example.com"]}
        for n in range(number)
    ]
    entries.append({**entry, "subject": "To nobody", "recipient_list": []})
    batch = bulk.submit(entries)
    bulk.expand(batch.pk)
    return str(batch.pk)


def lose(mail: str) -> None:
    """Make the outcome of a mail unknown, as after the death of a worker."""
    from django_epica_mail.models import EmailLog

    EmailLog.objects.filter(pk=mail).update(
        status="unknown", pending=None, failure_kind="worker_lost", on_unknown="hold"
    )


def make_history() -> None:
    """Store totals for the last day and of all time, as if the sweep had counted mail."""
    from collections import Counter

    from django.utils import timezone

    from django_epica_mail.models import EmailTotal
    from django_epica_mail.monitoring import totals

    last = totals.hour_of(timezone.now())
    rows = []
    for index in range(1, 24):
        flow = {"hour": last - index * totals.HOUR, "queue": "emails", "transport": "smtp"}
        sent = 60 + 40 * (index % 7) + 9 * index
        times = [sent // 2, sent // 4, sent - sent // 2 - sent // 4, *([0] * 11)]
        rows += [
            EmailTotal(**flow, event="sent", count=sent, seconds=sent * 0.2, buckets=times),
            EmailTotal(**flow, event="retried", count=index % 5),
            EmailTotal(
                **flow,
                event="failed",
                count=index % 3,
                failure_kind="permanent",
                failure_code=550,
            ),
        ]
    ever: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        ever[row.event, row.failure_kind, row.failure_code] += row.count
    rows += [
        EmailTotal(
            hour=totals.ALL_TIME,
            queue="emails",
            transport="smtp",
            event=event,
            failure_kind=kind,
            failure_code=code,
            count=count,
        )
        for (event, kind, code), count in ever.items()
    ]
    EmailTotal.objects.bulk_create(rows)


def fail_for_reasons(subject: str) -> dict[str, list[str]]:
    """Store failed mail as the queue leaves it, and the totals that the sweep would count of it.

    Three were refused with 554 just now, two with 550, and two with 554 three hours ago.
    """
    from django.utils import timezone

    from django_epica_mail.models import EmailLog, EmailTotal
    from django_epica_mail.monitoring import totals

    EmailTotal.objects.all().delete()
    now = timezone.now()
    made: dict[str, list[str]] = {}
    for name, number, code, reply, ended in (
        ("blocked", 3, 554, "5.7.1 blocked", now),
        ("unknown", 2, 550, "5.1.1 user unknown", now),
        ("old", 2, 554, "5.7.1 blocked", now - timedelta(hours=3)),
    ):
        made[name] = [send_tomorrow(f"{name}{n}@example.com", subject) for n in range(number)]
        EmailLog.objects.filter(pk__in=made[name]).update(
            status="failed",
            pending=None,
            failure_kind="permanent",
            failure_code=code,
            reply=reply,
            finished_at=ended,
            due_at=now,
        )
        for hour in (totals.hour_of(ended), totals.ALL_TIME):
            total, _is_new = EmailTotal.objects.get_or_create(
                hour=hour,
                queue="emails",
                transport="smtp",
                event="failed",
                failure_kind="permanent",
                failure_code=code,
            )
            total.count += number
            total.save()
    return made


def record(mail: str, kind: str, reply: str = "") -> None:
    """Store what a provider reports of a mail."""
    from django.utils import timezone

    from django_epica_mail.models import EmailEvent, EmailLog

    now = timezone.now()
    row = EmailLog.objects.get(pk=mail)
    EmailEvent.objects.create(
        email=row,
        key=f"{kind} {mail}",
        kind=kind,
        at=now,
        created_at=now,
        source="amazon_ses",
        address=row.recipients.get().address,
        reply=reply,
        provider_id=f"ses-{mail}",
    )


def send_now(mail: str) -> None:
    """Make a scheduled mail due."""
    from django_epica_mail import outbox

    outbox.send_now([mail])  # type: ignore[list-item] # a UUID as text


def suppress(address: str) -> None:
    """Put an address on the suppression list."""
    from django_epica_mail import suppression

    suppression.add(address, reason="manual")


def remove(mails: list[str]) -> None:
    """Delete mails with what was reported of them, and lift what keeps mail from anybody."""
    from django_epica_mail.models import EmailEvent, EmailLog, Suppression

    Suppression.objects.all().delete()

    EmailEvent.objects.filter(email__in=mails).delete()
    EmailLog.objects.filter(pk__in=mails).delete()
