"""Send one mail, or many in one call, in the way of each subject."""

from __future__ import annotations

from typing import Any

SENDER = "shop@example.com"
TEXT = "Thank you for your order. It leaves our house tomorrow morning.\n" * 12
HTML = f"<html><body><p>{TEXT}</p></body></html>"


def django_single(number: int) -> None:
    """Send with Django's ``send_mail``."""
    from django.core.mail import send_mail

    send_mail(f"Mail {number}", TEXT, SENDER, [f"to{number}@example.com"], html_message=HTML)


def django_bulk(numbers: range) -> None:
    """Send many messages with one call of the site's backend."""
    from django.core.mail import EmailMultiAlternatives, get_connection

    messages = []
    for number in numbers:
        to = [f"to{number}@example.com"]
        message = EmailMultiAlternatives(f"Mail {number}", TEXT, SENDER, to)
        message.attach_alternative(HTML, "text/html")
        messages.append(message)
    get_connection().send_messages(messages)


def epica_bulk(numbers: range) -> None:
    """Pass a list of dicts to this package's bulk task."""
    from django_epica_mail.tasks import send_bulk_emails_task

    send_bulk_emails_task.delay([_entry(number) for number in numbers])


def _entry(number: int) -> dict[str, Any]:
    return {
        "subject": f"Mail {number}",
        "message": TEXT,
        "from_email": SENDER,
        "recipient_list": [f"to{number}@example.com"],
        "html_message": HTML,
    }


def _post_office_entry(number: int) -> dict[str, Any]:
    return {
        "sender": SENDER,
        "recipients": [f"to{number}@example.com"],
        "subject": f"Mail {number}",
        "message": TEXT,
        "html_message": HTML,
    }


def post_office_single(number: int) -> None:
    """Send with post_office's own function."""
    from post_office import mail

    mail.send(**_post_office_entry(number))


def post_office_bulk(numbers: range) -> None:
    """Send with post_office's own bulk function."""
    from post_office import mail

    mail.send_many([_post_office_entry(number) for number in numbers])


def handrolled_single(number: int) -> None:
    """Store a row, and pass its id to a task."""
    from benchmarks.site.handrolled.models import EmailLog
    from benchmarks.site.handrolled.tasks import send_email

    row = EmailLog.objects.create(**_row(number))
    send_email.delay(row.pk)


def handrolled_bulk(numbers: range) -> None:
    """Store all rows at once, and pass each id to a task."""
    from benchmarks.site.handrolled.models import EmailLog
    from benchmarks.site.handrolled.tasks import send_email

    for row in EmailLog.objects.bulk_create(EmailLog(**_row(number)) for number in numbers):
        send_email.delay(row.pk)


def _row(number: int) -> dict[str, Any]:
    to = f"to{number}@example.com"
    return {"subject": f"Mail {number}", "body": TEXT, "html": HTML, "sender": SENDER, "to": to}


SINGLE = {
    "django": django_single,
    "epica": django_single,
    "post_office": post_office_single,
    "handrolled": handrolled_single,
}
BULK = {
    "django": django_bulk,
    "epica": epica_bulk,
    "post_office": post_office_bulk,
    "handrolled": handrolled_bulk,
}
