"""Deals with rows whose ids are none: no statement that names one finds its row.

SQLite and MySQL have no type for ids, and store there what anybody writes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID

from django.db.models import CharField, Func, QuerySet

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


def walk(
    rows: QuerySet[Any], size: int, key: Callable[[Any], Any] = lambda row: row.pk
) -> Iterator[list[Any]]:
    """Yield all rows by primary key, in lists of up to ``size``; ``key`` returns that of a row.

    Each list begins behind the last right id of the one before: what a wrong id is read as stands
    elsewhere in the order of the database.
    """
    rows, last, passed = rows.order_by("pk"), None, 0
    while True:
        following = rows if last is None else rows.filter(pk__gt=last)
        chunk = list(following[passed : passed + size])
        if not chunk:
            return
        yield chunk
        passed += len(chunk)
        for number, pk in enumerate(reversed([key(row) for row in chunk])):
            if not (isinstance(pk, UUID) and is_no_key(pk)):
                last, passed = pk, number
                break
