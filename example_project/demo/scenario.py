"""What the demo sends, with Django's own calls and nothing else, and what it checks afterwards."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mail
from django.db import transaction
from django.db.models import Count

from django_epica_mail.models import EmailLog, EmailRecipient
from shop.mails import bulk_mailer

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.inbox import Inbox
    from demo.wiretap import Wiretap

PLAIN, HTML, RESET = "plain@example.com", "html@example.com", "demo@example.com"
ROLLED_BACK = "rolled-back@example.com"
BULK = [f"reader-{number:03}@example.com" for number in range(1, 201)]
EXPECTED = [PLAIN, HTML, RESET, *BULK]

TEXT = "Merhaba! Siparişiniz yolda."
MARKUP = "<p>Merhaba! <strong>Siparişiniz</strong> yolda.</p>"


class ChangeOfMindError(Exception):
    """What the transaction of `roll_back` ends with."""


def steps(site: str) -> list[tuple[str, Callable[[], None]]]:
    """Return what the demo does, in order, with a name for each."""
    return [
        ("send_mail()", send_plain),
        ("an HTML mail", send_html),
        ("a password reset over HTTP", partial(request_password_reset, site)),
        ("a mail in a transaction that is rolled back", roll_back),
        (f"{len(BULK)} mails in one send_messages()", send_bulk),
    ]


def send_plain() -> None:
    """Send one plain mail."""
    send_mail("A plain mail", TEXT, None, [PLAIN])


def send_html() -> None:
    """Send one mail in text and HTML."""
    message = EmailMultiAlternatives("A mail in HTML", TEXT, to=[HTML])
    message.attach_alternative(MARKUP, "text/html")
    message.send()


def request_password_reset(site: str) -> None:
    """Fill in the form of Django's own view, as a browser does."""
    browser = new_browser()
    address = f"{site}accounts/password_reset/"
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', get(browser, address))
    if token is None:
        raise RuntimeError(f"{address} shows no form with a CSRF token.")
    form = {"csrfmiddlewaretoken": token[1], "email": RESET}
    with browser.open(address, urlencode(form).encode(), timeout=30) as response:
        if not response.url.endswith("/done/"):
            raise RuntimeError(f"{address} did not accept the address {RESET}.")


def roll_back() -> None:
    """Send a mail in a transaction, and think better of it."""
    with contextlib.suppress(ChangeOfMindError), transaction.atomic():
        send_mail("Never to be seen", TEXT, None, [ROLLED_BACK])
        raise ChangeOfMindError


def send_bulk() -> None:
    """Send a mail to each of many readers, in one call."""
    bulk_mailer().send_messages(
        [EmailMessage(f"News {number}", TEXT, to=[to]) for number, to in enumerate(BULK, 1)]
    )


def new_browser() -> OpenerDirector:
    """Return an HTTP client that keeps cookies and follows redirects."""
    return build_opener(HTTPCookieProcessor(CookieJar()))


def get(browser: OpenerDirector, address: str) -> str:
    """Fetch a page; raise `URLError` unless it answers 200."""
    with browser.open(address, timeout=30) as response:
        return response.read().decode()


def arrived(inbox: Inbox) -> Counter[str]:
    """Count the mails received, by recipient."""
    return Counter(to for mail in list(inbox.received) for to in mail.recipients)


def count_arrived(inbox: Inbox) -> int:
    """Count the expected mails that have arrived."""
    return len(set(EXPECTED) & set(arrived(inbox)))


def count_sent() -> int:
    """Count the mails that the database knows to be sent."""
    return EmailLog.objects.filter(status=EmailLog.Status.SENT).count()


def summary(inbox: Inbox) -> list[str]:
    """Describe what was received, the mails to the readers in one line."""
    subjects = {mail.recipients: str(mail.message()["Subject"]) for mail in list(inbox.received)}
    bulk = [subject for recipients, subject in subjects.items() if set(recipients) <= set(BULK)]
    single = {to: subject for (to, *_), subject in subjects.items() if to not in BULK}
    lines = [f"{subject} (to {to})" for to, subject in single.items()]
    if bulk:
        lines.append(f"{bulk[0]} … {bulk[-1]} (one each to {len(bulk)} readers)")
    return lines


@dataclass(frozen=True)
class Proof:
    """One claim of the package, and whether it was found to hold."""

    holds: bool
    claim: str


def proofs(inbox: Inbox, wiretap: Wiretap) -> list[Proof]:
    """Check what the demo promised, after everything has arrived or the time is over."""
    wiretap.end()
    return [
        each_arrived_once(inbox),
        html_is_intact(inbox),
        rolled_back_is_absent(inbox),
        reset_link_works(inbox),
        rows_say_sent(),
        broker_saw_no_content(wiretap),
    ]


def each_arrived_once(inbox: Inbox) -> Proof:
    """Check that the expected mails, and no others, arrived, each exactly once."""
    got, wanted = arrived(inbox), Counter(EXPECTED)
    claim = f"{(got & wanted).total()} of {len(EXPECTED)} mails arrived, each exactly once"
    faults = [
        f"{len(addresses)} {fault} ({', '.join(sorted(addresses)[:3])} …)"
        for fault, addresses in (
            ("missing", wanted - got),
            ("twice or not asked for", got - wanted),
        )
        if addresses
    ]
    return Proof(not faults, "; ".join([claim, *faults]) if faults else claim)


def html_is_intact(inbox: Inbox) -> Proof:
    """Check both bodies of the HTML mail."""
    bodies = [
        (mail.body("plain").strip(), mail.body("html").strip())
        for mail in inbox.received
        if HTML in mail.recipients
    ]
    return Proof(bodies == [(TEXT, MARKUP)], "the HTML mail has its text and its HTML, as written")


def rolled_back_is_absent(inbox: Inbox) -> Proof:
    """Check that the mail of the undone transaction is neither received nor stored."""
    stored = EmailRecipient.objects.filter(address=ROLLED_BACK).exists()
    return Proof(
        not stored and ROLLED_BACK not in arrived(inbox),
        "the mail of the rolled-back transaction is absent, from inbox and database",
    )


def reset_link_works(inbox: Inbox) -> Proof:
    """Open the link of the reset mail: it has to show the form for a new password."""
    texts = [mail.body("plain") for mail in inbox.received if RESET in mail.recipients]
    link = re.search(r"http://\S+/accounts/reset/\S+", texts[0] if texts else "")
    works = False
    if link:
        with contextlib.suppress(OSError):
            works = 'name="new_password1"' in get(new_browser(), link[0])
    return Proof(works, "the link in the password-reset mail answers 200 with the form")


def rows_say_sent() -> Proof:
    """Check the statuses in the database."""
    rows = EmailLog.objects.values_list("status").annotate(Count("pk")).order_by("status")
    counts = {str(status): count for status, count in rows}
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    return Proof(counts == {"sent": len(EXPECTED)}, f"the database says: {said or 'nothing'}")


def broker_saw_no_content(wiretap: Wiretap) -> Proof:
    """Check that no address, subject or text went through Redis, and that rings did."""
    betrayed = wiretap.betrayed({"@example.com", "A plain mail", "Merhaba", "News ", "password"})
    calls = ", ".join(f"{count} x {call}" for call, count in wiretap.calls.most_common())
    claim = f"Redis carried no content, only: {calls or 'nothing at all'}"
    if betrayed:
        claim = f"Redis carried content: {', '.join(sorted(betrayed))}"
    return Proof(bool(wiretap.calls) and not betrayed, claim)
