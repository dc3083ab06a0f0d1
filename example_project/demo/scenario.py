"""Define what the demo sends, with Django's own calls only, and what it then checks."""

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

from demo.inbox import THROTTLED
from demo.stack import PASSWORD, USER
from devservers.process import wait_until
from django_epica_mail import suppression
from django_epica_mail.models import EmailLog, EmailRecipient, SlowedDomain
from django_epica_mail.tasks import read_bounces
from shop.mails import bulk_mailer

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.inbox import Inbox
    from demo.redis_monitor import RedisMonitor

PLAIN, HTML, RESET = "plain@example.com", "html@example.com", "demo@example.com"
ROLLED_BACK = "rolled-back@example.com"
GONE = "gone@example.com"
SLOWED_DOMAIN = THROTTLED.partition("@")[2]
BUSY = [f"second@{SLOWED_DOMAIN}", f"third@{SLOWED_DOMAIN}"]
BULK = [f"reader-{number:03}@example.com" for number in range(1, 201)]
EXPECTED = [PLAIN, HTML, RESET, GONE, *BUSY, *BULK]

SLOWED_PAGE = "admin/epica_mail/deliverygate/"
BOUNCED_PAGE = "admin/epica_mail/emailevent/?kind__exact=bounced"

TEXT = "Hello Ayşe! Your order is on its way."
MARKUP = "<p>Hello <strong>Ayşe</strong>! Your order is on its way.</p>"


class RollBackError(Exception):
    """Ends the transaction of `roll_back`."""


def steps(site: str) -> list[tuple[str, Callable[[], None]]]:
    """Return the steps of the demo in order, each with a name."""
    return [
        ("send_mail()", send_plain),
        ("an HTML mail", send_html),
        ("a password reset over HTTP", partial(request_password_reset, site)),
        ("a mail in a transaction that is rolled back", roll_back),
        ("a mail that bounces", send_to_nobody),
        ("mails to a domain that asks for less", send_to_busy_domain),
        (f"{len(BULK)} mails in one send_messages()", send_bulk),
    ]


def send_plain() -> None:
    """Send one plain mail."""
    send_mail("A plain mail", TEXT, None, [PLAIN])


def send_html() -> None:
    """Send one mail with text and HTML."""
    message = EmailMultiAlternatives("A mail in HTML", TEXT, to=[HTML])
    message.attach_alternative(MARKUP, "text/html")
    message.send()


def request_password_reset(site: str) -> None:
    """Submit the form of Django's own view as a browser does."""
    browser = new_browser()
    address = f"{site}accounts/password_reset/"
    form = {"csrfmiddlewaretoken": token(browser, address), "email": RESET}
    with browser.open(address, urlencode(form).encode(), timeout=30) as response:
        if not response.url.endswith("/done/"):
            raise RuntimeError(f"{address} did not accept the address {RESET}.")


def token(browser: OpenerDirector, address: str) -> str:
    """Return the CSRF token of the form on a page."""
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', get(browser, address))
    if found is None:
        raise RuntimeError(f"{address} shows no form with a CSRF token.")
    return found[1]


def roll_back() -> None:
    """Send a mail in a transaction, and roll it back."""
    with contextlib.suppress(RollBackError), transaction.atomic():
        send_mail("Never to be seen", TEXT, None, [ROLLED_BACK])
        raise RollBackError


def send_to_nobody() -> None:
    """Send a mail that its server takes, and returns because nobody has the address."""
    send_mail("A mail to nobody", TEXT, None, [GONE])


def send_to_busy_domain() -> None:
    """Send mails to a domain whose server refuses the first of them for now."""
    for to in (THROTTLED, *BUSY):
        send_mail("A mail to a busy server", TEXT, None, [to])


def send_bulk() -> None:
    """Send a mail to each of many readers in one call."""
    bulk_mailer().send_messages(
        [EmailMessage(f"News {number}", TEXT, to=[to]) for number, to in enumerate(BULK, 1)]
    )


def new_browser() -> OpenerDirector:
    """Return an HTTP client that keeps cookies and follows redirects."""
    return build_opener(HTTPCookieProcessor(CookieJar()))


def get(browser: OpenerDirector, address: str) -> str:
    """Return a page; raise `URLError` if it answers with an error."""
    with browser.open(address, timeout=30) as response:
        return response.read().decode()


def arrived(inbox: Inbox) -> Counter[str]:
    """Count the mails received, by recipient."""
    return Counter(to for mail in list(inbox.received) for to in mail.recipients)


def count_arrived(inbox: Inbox) -> int:
    """Count the expected mails that have arrived."""
    return len(set(EXPECTED) & set(arrived(inbox)))


def count_sent() -> int:
    """Count the sent mails in the database."""
    return EmailLog.objects.filter(status=EmailLog.Status.SENT).count()


def summary(inbox: Inbox) -> list[str]:
    """Describe the mails received, with those to the readers in one line."""
    subjects = {mail.recipients: str(mail.message()["Subject"]) for mail in list(inbox.received)}
    bulk = [subject for recipients, subject in subjects.items() if set(recipients) <= set(BULK)]
    single = {to: subject for (to, *_), subject in subjects.items() if to not in BULK}
    lines = [f"{subject} (to {to})" for to, subject in single.items()]
    if bulk:
        lines.append(f"{bulk[0]} … {bulk[-1]} (one each to {len(bulk)} readers)")
    return lines


@dataclass(frozen=True)
class Check:
    """One claim of the package, and whether it holds."""

    passed: bool
    claim: str


def checks(inbox: Inbox, monitor: RedisMonitor, site: str) -> list[Check]:
    """Check all claims, after all mail has arrived or the deadline has passed."""
    monitor.end()
    return [
        each_arrived_once(inbox),
        html_is_intact(inbox),
        rolled_back_is_absent(inbox),
        reset_link_works(inbox),
        rows_are_sent(),
        broker_saw_no_content(monitor),
        bounce_suppresses(),
        busy_domain_is_slowed(),
        admin_shows(site),
    ]


def each_arrived_once(inbox: Inbox) -> Check:
    """Check that the expected mails and no others arrived, each exactly once."""
    got, wanted = arrived(inbox), Counter(EXPECTED)
    claim = f"{(got & wanted).total()} of {len(EXPECTED)} mails arrived, each exactly once"
    faults = [
        f"{len(addresses)} {fault} ({', '.join(sorted(addresses)[:3])} …)"
        for fault, addresses in (
            ("missing", wanted - got),
            ("duplicate or unexpected", got - wanted),
        )
        if addresses
    ]
    return Check(not faults, "; ".join([claim, *faults]) if faults else claim)


def html_is_intact(inbox: Inbox) -> Check:
    """Check both bodies of the HTML mail."""
    bodies = [
        (mail.body("plain").strip(), mail.body("html").strip())
        for mail in inbox.received
        if HTML in mail.recipients
    ]
    return Check(bodies == [(TEXT, MARKUP)], "the HTML mail has its text and its HTML unchanged")


def rolled_back_is_absent(inbox: Inbox) -> Check:
    """Check that the mail of the rolled-back transaction is neither received nor stored."""
    stored = EmailRecipient.objects.filter(address=ROLLED_BACK).exists()
    return Check(
        not stored and ROLLED_BACK not in arrived(inbox),
        "the mail of the rolled-back transaction is in neither inbox nor database",
    )


def reset_link_works(inbox: Inbox) -> Check:
    """Check that the link in the reset mail shows the form for a new password."""
    texts = [mail.body("plain") for mail in inbox.received if RESET in mail.recipients]
    link = re.search(r"http://\S+/accounts/reset/\S+", texts[0] if texts else "")
    works = False
    if link:
        with contextlib.suppress(OSError):
            works = 'name="new_password1"' in get(new_browser(), link[0])
    return Check(works, "the link in the password-reset mail answers 200 with the form")


def rows_are_sent() -> Check:
    """Check the statuses in the database."""
    rows = EmailLog.objects.values_list("status").annotate(Count("pk")).order_by("status")
    counts = {str(status): count for status, count in rows}
    shown = ", ".join(f"{count} {status}" for status, count in counts.items())
    wanted = {"sent": len(EXPECTED), "retrying": 1}
    return Check(counts == wanted, f"the database contains: {shown or 'nothing'}")


def bounce_suppresses() -> Check:
    """Check that a worker reads the bounce that came back; beat would start it within 5 minutes."""
    read_bounces.delay()
    wanted = partial(suppression.is_suppressed, GONE)
    with contextlib.suppress(TimeoutError):
        wait_until(wanted, timeout=15, what="the bounce to be read")
    return Check(wanted(), f"the mail to {GONE} bounced, and the address is suppressed")


def busy_domain_is_slowed() -> Check:
    """Check that the domain that asked for less gets less, and the refused mail waits."""
    slowed = list(SlowedDomain.objects.values_list("domain", flat=True))
    claim = f"mail to {SLOWED_DOMAIN}, and to no other domain, is slowed down"
    return Check(slowed == [SLOWED_DOMAIN], claim)


def admin_shows(site: str) -> Check:
    """Check that staff see the bounce and the slowed domain in the admin."""
    browser = new_browser()
    address = f"{site}admin/login/?next=/{SLOWED_PAGE}"
    form = {"username": USER, "password": PASSWORD, "csrfmiddlewaretoken": token(browser, address)}
    with browser.open(address, urlencode(form).encode(), timeout=30) as response:
        slowed = response.read().decode()
    seen = SLOWED_DOMAIN in slowed and GONE in get(browser, f"{site}{BOUNCED_PAGE}")
    return Check(seen, "the admin shows the slowed domain and the bounce")


def broker_saw_no_content(monitor: RedisMonitor) -> Check:
    """Check that rings went through Redis, but no address, subject or text."""
    leaked = monitor.leaked({"@example.com", "A plain mail", "on its way", "News ", "password"})
    calls = ", ".join(f"{count} x {call}" for call, count in monitor.calls.most_common())
    claim = f"Redis carried no content, only: {calls or 'nothing'}"
    if leaked:
        claim = f"Redis carried content: {', '.join(sorted(leaked))}"
    return Check(bool(monitor.calls) and not leaked, claim)
