"""Mail of unknown outcome, decided by what the site's own function knows, with real processes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from devservers.process import wait_until
from devservers.smtp_actions import Drop
from devservers.smtp_faults import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from devservers.smtp_session import Session
    from django_epica_mail.models import EmailLog
    from tests.acceptance.conftest import OpenSite

ASKED = f"{__name__}.evidence"
NAMES = ("accepted", "refused", "unknown")


def evidence(email: EmailLog) -> tuple[str, str]:
    """Answer as the name in the mail's address says; called by the worker that sweeps."""
    (recipient,) = email.recipients.all()
    name = recipient.address.partition("@")[0]
    return name, f"the log says {name}"


def send() -> dict[str, str]:
    """Send a mail to each name; return their ids."""
    from django_epica_mail.tasks import send_email_async

    return {
        name: str(send_email_async("S", "M", None, [f"{name}@example.com"], on_unknown="hold").id)
        for name in NAMES
    }


def history(ids: dict[str, str]) -> dict[str, list[str]]:
    """Return what the page of each mail says happened, as staff see it."""
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("staff"))
    pages = {
        name: client.get(f"/admin/epica_mail/emaillog/{pk}/change/").content.decode()
        for name, pk in ids.items()
    }
    words = re.compile(r"Unknown outcome decided|the log says \w+")
    return {name: sorted(set(words.findall(page))) for name, page in pages.items()}


def test_evidence_decides_before_anything_is_sent_again(open_site: OpenSite) -> None:
    site = open_site("postgresql", EVIDENCE=ASKED, RETRY_DELAY=2)
    for name, taken in (("accepted", True), ("refused", False), ("unknown", True)):
        site.smtp.inject(Rule("content", Drop(accepted=taken), _is_for(name), times=1))
    site.start_worker()
    ids = site.call(send)
    site.wait_for(unknown=3)
    site.start_beat()
    site.wait_for(sent=2, unknown=1)
    asked = "SELECT due_at > now() + interval '5 seconds' FROM epica_mail_emaillog"
    is_left = f"{asked} WHERE status = 'unknown'"
    wait_until(lambda: site.fetch(is_left) == [(True,)], timeout=30, what="the third question")
    arrived = sorted(mail.recipients[0] for mail in site.smtp.accepted)
    assert arrived == [f"{name}@example.com" for name in NAMES], "each once"
    rows = site.fetch("SELECT email_id FROM epica_mail_deliveryattempt WHERE number = 2")
    assert [str(pk) for (pk,) in rows] == [ids["refused"]], "no other is tried again"
    assert site.call(history, ids) == {
        "accepted": ["Unknown outcome decided", "the log says accepted"],
        "refused": ["Unknown outcome decided", "the log says refused"],
        "unknown": [],
    }


def _is_for(name: str) -> Callable[[Session], bool]:
    return lambda session: session.recipients == [f"{name}@example.com"]
