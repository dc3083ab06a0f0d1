"""The recipients on an e-mail's page, with what else the queue knows of their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib.admin import AdminSite
from django.http import HttpRequest

from django_epica_mail import suppression
from django_epica_mail.admin.changelist import links
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailRecipient, Suppression


@dataclass(frozen=True, slots=True)
class Row:
    """A recipient, and links to the rest that is known of the address."""

    recipient: EmailRecipient
    other_mails: str
    """The URL of the list of all e-mails to the address."""
    suppression: str
    """The URL of its entries on the suppression list; empty if it has none."""
    reasons: str
    """Why it is on the suppression list."""


def rows(
    request: HttpRequest, site: AdminSite, recipients: Sequence[EmailRecipient], using: str
) -> list[Row]:
    """Return recipients with their links; the suppression list takes a permission of its own."""
    addresses = {canonical(it.address) for it in recipients}
    may_see = request.user.has_perm("epica_mail.view_suppression")
    listed = suppression.listed(addresses, using) if may_see and addresses else {}
    return [_row(it, site, listed.get(canonical(it.address), ())) for it in recipients]


def _row(recipient: EmailRecipient, site: AdminSite, entries: Sequence[tuple[str, str]]) -> Row:
    narrowed = links.query(q=recipient.address)
    page = links.page_url(site, "suppression_changelist") if entries else ""
    labels = {str(Suppression.Reason(reason).label) for _scope, reason in entries}
    return Row(
        recipient,
        links.emails_url(site, q=recipient.address),
        page and f"{page}?{narrowed}",
        ", ".join(sorted(labels)),
    )
