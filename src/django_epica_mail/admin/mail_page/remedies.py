"""What a person can do about an e-mail that did not arrive: the table of causes in the docs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.replies import says_no_such_address
from django_epica_mail.retry import Kind

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

_NO_SUCH_ADDRESS = _(
    "The address does not exist. Correct it in your site, and send the e-mail again from there."
)
_TOO_LARGE = _("The server takes no message of this size. Send a smaller one, or a link.")
_TOO_LARGE_CODE = 552
_IN_DOUBT = _(
    "It may have arrived. Look for its Message-ID in the log of the server, then mark it as "
    "arrived, resend it or write it off."
)
_OUT_OF_RETRIES = _("The retries are used up. Once the server takes e-mail again, queue it again.")

_OF_KIND: dict[str, StrOrPromise] = {
    Kind.PERMANENT: _(
        "The server refused it for good; its reply says why. If it refuses your server or your "
        "domain, mend that (SPF, DKIM, DMARC, block lists), then queue it again."
    ),
    Kind.TRANSIENT: _("Nothing: it is tried again by itself."),
    Kind.THROTTLED: _("Nothing: it is tried again by itself, more slowly."),
    Kind.OUTAGE: _("Mend the transport. Its e-mails wait, and go by themselves afterwards."),
    Kind.UNKNOWN: _IN_DOUBT,
    Kind.WORKER_LOST: _IN_DOUBT,
    Kind.POISON: _(
        "Its worker died twice while sending it. Look at its content and at the worker's log "
        "before you queue it again; it then goes alone."
    ),
    Kind.MESSAGE: _(
        "The message cannot be built: the reply has the error. Correct the code of your site, then "
        "queue it again."
    ),
    Kind.OVERDUE: _(
        "Its transport was out of order for too long. Once it works, queue it again if it is still "
        "wanted."
    ),
    Kind.SUPPRESSED: _(
        "Its recipients are on the suppression list. Lift an entry only if the person asks for it, "
        "then send the e-mail again."
    ),
    Kind.VETOED: _("Your site's own code stopped it: see the receiver of the signal."),
}
"""The remedy for each kind of failure, while the e-mail waits or after it has ended."""

_AFTER_THE_END: dict[str, StrOrPromise] = {
    Kind.TRANSIENT: _OUT_OF_RETRIES,
    Kind.THROTTLED: _OUT_OF_RETRIES,
    Kind.OUTAGE: _OUT_OF_RETRIES,
}
"""The remedies that differ once the e-mail has failed."""

_OF_STATUS: dict[str, StrOrPromise] = {
    Status.EXPIRED: _(
        "It was not sent before it expired. If it is still wanted, send it again from your site."
    ),
    Status.SUPPRESSED: _OF_KIND[Kind.SUPPRESSED],
}
_OF_EVENT: dict[str, StrOrPromise] = {
    EmailEvent.Kind.BOUNCED: _(
        "The receiving server took it and sent it back. If the address is wrong, correct it in "
        "your site; an address that bounced for good is on the suppression list."
    ),
    EmailEvent.Kind.REJECTED: _(
        "The provider did not send it. Its own suppression list or its rules are the usual reason."
    ),
    EmailEvent.Kind.FAILED: _("The provider could not deliver it. See its own log."),
    EmailEvent.Kind.COMPLAINED: _(
        "The reader reported it as spam. Do not write to this address again."
    ),
}


def remedy(mail: EmailLog) -> StrOrPromise:
    """Return what to do about the failure of an e-mail; empty if it did not fail."""
    if mail.status in _OF_STATUS:
        return _OF_STATUS[mail.status]
    if mail.status not in (Status.FAILED, Status.RETRYING, Status.UNKNOWN):
        return ""
    kind = mail.failure_kind
    if kind == Kind.PERMANENT and mail.failure_code == _TOO_LARGE_CODE:
        return _TOO_LARGE
    if kind == Kind.PERMANENT and says_no_such_address(f"{mail.failure_code or ''} {mail.reply}"):
        return _NO_SUCH_ADDRESS
    if mail.status == Status.FAILED and kind in _AFTER_THE_END:
        return _AFTER_THE_END[kind]
    return _OF_KIND.get(kind, "")


def remedy_of(event: EmailEvent) -> StrOrPromise:
    """Return what to do about something that happened after sending; empty for good news."""
    return _OF_EVENT.get(event.kind, "")
