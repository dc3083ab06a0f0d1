"""Takes e-mails out of the queue whose ids are none: no statement that names one finds its row.

SQLite and MySQL have no type for ids, and store there what anybody writes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from django.db.models import CharField, Func

from django_epica_mail import clock, lifecycle
from django_epica_mail.models import EmailLog, EmailQuerySet
from django_epica_mail.models.fields import is_no_key
from django_epica_mail.retry import Kind

logger = logging.getLogger(__name__)

_MOST = 500
"""Rows looked at when one is found."""
_RIGHT = re.compile("'[0-9a-f]{32}'")


def set_aside(mails: Iterable[EmailLog], rows: EmailQuerySet) -> bool:
    """Let those of ``rows`` fail that are written with a wrong id, if ``mails`` show any.

    ``mails`` are the first of ``rows``. Returns whether any failed; whoever claims looks again.
    """
    if not any(is_no_key(mail.pk) for mail in mails):
        return False
    # As SQL, which tells bytes from text.
    quoted: Any = rows.annotate(quoted=Func("pk", function="QUOTE", output_field=CharField()))
    firsts = quoted.values_list("quoted", flat=True)[:_MOST]
    wrong = [it for it in firsts if not _RIGHT.fullmatch(it)]
    number: int = (
        quoted.order_by()
        .filter(quoted__in=wrong)
        .update(
            status=lifecycle.GIVE_UP.target,
            pending=None,
            failure_kind=Kind.MESSAGE,
            finished_at=clock.now(),
            reply="The id of this row is no UUID, so that it cannot be claimed.",
        )
    )
    logger.error("%s e-mails have ids that are no UUIDs, and failed.", number)
    return number > 0
