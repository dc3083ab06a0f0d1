"""The suppression list: the addresses that mail is not sent to, and its CSV form."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TextIO
from uuid import UUID

from django.conf import settings
from django.db import connections, router
from django.db.models import BooleanField, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.db.models.lookups import Exact
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.dateparse import parse_datetime
from django.utils.encoding import force_bytes
from django.utils.timezone import is_naive, make_aware

from django_epica_mail import clock, conf, rules, spreadsheets
from django_epica_mail._compat import batched
from django_epica_mail.messages.addresses import canonical, is_complete
from django_epica_mail.models import EmailLog, EmailRecipient, Suppression, fields

Reason = Suppression.Reason

CSV_COLUMNS = ("address", "scope", "reason", "note", "created_at", "expires_at", "digest")

_CHUNK = 400
"""How many addresses or CSV lines are looked up, inserted or written at a time."""

_DIGEST_LENGTH = 64

TABLE = Suppression._meta.db_table

_FIRST_YEAR, _LAST_YEAR = 2, 9998
"""Years whose edges some time zone cannot show, or no column holds."""

_COLUMN_ALIASES = {"email": "address", "e-mail": "address", "email address": "address"}


def add(
    address: str,
    *,
    reason: str = Reason.MANUAL,
    scope: str = "",
    note: str = "",
    expires_at: datetime | None = None,
) -> bool:
    """Suppress an address from now on; return ``False`` if it has such an entry in force.

    ``scope`` is a category, or empty for all mail. Raises ``ValueError`` for an invalid address.
    """
    return bool(
        insert([entry(address, reason=reason, scope=scope, note=note, expires_at=expires_at)])
    )


def add_digest(found_by: str, *, reason: str, scope: str = "", recipient: str = "") -> bool:
    """Suppress an address that is known by its digest; return whether the entry is new.

    ``recipient`` is the address, if a mail of ours went to it: its form is not examined, because
    even a mailbox of this machine (``root``) may want no more. Writes nothing for a known entry.
    """
    row = entry("", reason=reason, scope=scope, found_by=found_by)
    if recipient:
        row.address, row.digest = canonical(recipient), digest(recipient)
    known = Suppression.objects.using(_using()).filter(
        expires_at=None, digest=row.digest, scope=scope, reason=reason
    )
    return not known.exists() and bool(insert([row]))


def scopes_left(found_by: str, recipient: str = "") -> set[str]:
    """Return the scopes that an address, known by its digest, has unsubscribed from.

    ``recipient`` is the address, if known: it is then found under each of the keys.
    """
    rows = Suppression.objects.using(_using()).filter(_of(found_by, recipient), _in_force())
    return set(rows.filter(reason=Reason.UNSUBSCRIBE).values_list("scope", flat=True))


def readmit(found_by: str, scope: str, recipient: str = "") -> bool:
    """Take back that an address unsubscribed from a scope; return whether it had.

    No other reason is touched: who bounces, or called mail spam, does not come back by a link.
    """
    rows = Suppression.objects.using(_using()).filter(_of(found_by, recipient), scope=scope)
    count, _ = rows.filter(reason=Reason.UNSUBSCRIBE).delete()
    return bool(count)


def _of(found_by: str, recipient: str) -> Q:
    return Q(digest=found_by) | match(recipient) if recipient else Q(digest=found_by)


def is_digest_of(found_by: str, address: str) -> bool:
    """Return whether a digest, made with any of the keys, is that of an address."""
    wanted = canonical(address)
    return any(constant_time_compare(found_by, _digest(key, wanted)) for key in _keys())


def entry(
    address: str,
    *,
    reason: str,
    scope: str = "",
    note: str = "",
    expires_at: datetime | None = None,
    found_by: str = "",
) -> Suppression:
    """Return an entry for ``insert``; an erased address is given by its digest alone.

    Raises ``ValueError`` for an invalid address, reason, category or time.
    """
    bare = canonical(address)
    is_erased = not bare and len(found_by) == _DIGEST_LENGTH and found_by.isalnum()
    if not is_erased and not is_complete(bare):
        raise ValueError(f"{address!r} is not an e-mail address.")
    if reason not in Reason.values:
        raise ValueError(f"reason must be one of {', '.join(Reason.values)}; it is {reason!r}.")
    if scope:
        rules.check_name("scope", scope)
    if expires_at is not None and not _FIRST_YEAR < expires_at.year < _LAST_YEAR:
        raise ValueError(
            f"expires_at must be after the year {_FIRST_YEAR} and before {_LAST_YEAR}; it is in "
            f"{expires_at.year}. Leave it empty to suppress the address for good."
        )
    return Suppression(
        address=bare,
        digest=found_by if is_erased else digest(bare),
        scope=scope,
        reason=reason,
        note=note,
        expires_at=expires_at,
    )


def insert(rows: Sequence[Suppression]) -> int:
    """Insert the entries that are new; return how many.

    Entries in force keep their note. An entry that ends makes way for one that lasts longer.
    """
    entries = Suppression.objects.using(_using())
    count = 0
    for chunk in batched(rows, _CHUNK):
        _remove_shorter(chunk)
        entries.bulk_create(chunk, ignore_conflicts=True)
        count += entries.filter(pk__in=[row.pk for row in chunk]).count()
    return count


def _remove_shorter(rows: Sequence[Suppression]) -> None:
    """Remove the entries that would keep out new ones, which are in force and last longer."""
    lasting = (it for it in rows if it.expires_at is None or it.expires_at > timezone.now())
    new = {_key(row): row.expires_at for row in lasting}
    if new:
        entries = Suppression.objects.using(_using())
        ending = entries.filter(digest__in={it for it, *_ in new}, expires_at__isnull=False)
        old = [row.pk for row in ending if _key(row) in new and _outlasts(new[_key(row)], row)]
        if old:
            ending.filter(pk__in=old).delete()


def _outlasts(expires_at: datetime | None, row: Suppression) -> bool:
    return expires_at is None or (row.expires_at is not None and expires_at > row.expires_at)


def _key(row: Suppression) -> tuple[str, str, str]:
    """Return what is unique about an entry."""
    return row.digest, fields.alike(row.scope, connections[_using()]), row.reason


def remove(address: str, *, scope: str | None = None, reason: str | None = None) -> int:
    """Remove an address from the list; return how many entries were removed.

    With ``scope`` or ``reason``, only matching entries are removed.
    """
    rows = Suppression.objects.using(_using()).filter(match(address))
    if scope is not None:
        rows = rows.filter(scope=scope)
    if reason is not None:
        rows = rows.filter(reason=reason)
    count, _ = rows.delete()
    return count


def _in_force() -> Q:
    return Q(expires_at=None) | Q(expires_at__gt=clock.now())


def match(address: str) -> Q:
    """Return the filter for the entries of an address."""
    wanted = canonical(address)
    written = Q(address=wanted) & Q(Exact(fields.Exactly("address"), wanted))
    return Q(digest__in=[_digest(key, wanted) for key in _keys()]) | written


def is_suppressed(address: str, category: str = "") -> bool:
    """Return whether mail of a category to an address is suppressed."""
    wanted = canonical(address)
    return _reason(listed([wanted], _using()).get(wanted, ()), category) is not None


def exists() -> RawSQL:
    """Return an expression for whether the list has any entry.

    Add it to a query that runs anyway: a site with an empty list then pays no query of its own.
    """
    # A constant string. An ORM subquery would take as long to build as the rest of the claim.
    sql = f"EXISTS(SELECT 1 FROM {TABLE})"  # noqa: S608
    return RawSQL(sql, (), output_field=BooleanField())  # noqa: S611


def held_back(
    mails: Iterable[EmailLog], using: str
) -> tuple[dict[UUID, dict[int, str]], dict[UUID, int]]:
    """Return the suppressed recipients of mails, and how many recipients each mail has left.

    The first dict holds the reasons by mail and position, of mails with suppressed recipients only.
    """
    categories = {mail.pk: mail.category for mail in mails}
    rows = EmailRecipient.objects.using(using).filter(email_id__in=categories, outcome="")
    recipients = [
        (mail, position, canonical(address))
        for mail, position, address in rows.values_list("email_id", "position", "address")
    ]
    entries = listed({address for _, _, address in recipients}, using)
    found: dict[UUID, dict[int, str]] = defaultdict(dict)
    left: dict[UUID, int] = defaultdict(int)
    for mail, position, address in recipients:
        left[mail] += 1
        reason = _reason(entries.get(address, ()), categories[mail])
        if reason is not None:
            found[mail][position] = reason
            left[mail] -= 1
    return dict(found), dict(left)


def listed(wanted: Iterable[str], using: str) -> dict[str, list[tuple[str, str]]]:
    """Return the entries of addresses in force: the scope and reason of each."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for chunk in batched(wanted, _CHUNK):
        whose = {_digest(key, address): address for address in chunk for key in _keys()}
        rows = (
            Suppression.objects.using(using)
            .filter(Q(digest__in=whose) | Q(address__in=chunk))
            .filter(_in_force())
        )
        for address, by, scope, reason in rows.values_list("address", "digest", "scope", "reason"):
            # By a collation that ignores accents, or some characters, others are found as well.
            if whom := address or whose.get(by):
                found[whom].append((scope, reason))
    return found


def _reason(entries: Iterable[tuple[str, str]], category: str) -> str | None:
    """Return the gravest reason to suppress mail of a category, or ``None``."""
    exempt = category in conf.get().transactional
    database = connections[_using()]
    own = fields.alike(category, database)
    reasons = {
        reason
        for scope, reason in entries
        if (not scope or fields.alike(scope, database) == own)
        and not (exempt and reason == Reason.UNSUBSCRIBE)
    }
    return next((reason for reason in Reason.values if reason in reasons), None)


def digest(address: str) -> str:
    """Return the HMAC by which an entry is found even after its address was erased."""
    return _digest(_keys()[0], canonical(address))


def _keys() -> Sequence[str | bytes]:
    """Return the keys of the digests; new digests use the first."""
    return conf.get().suppression_keys or (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)


def _digest(key: str | bytes, address: str) -> str:
    salted = hashlib.sha256(b"epica_mail.suppression" + force_bytes(key)).digest()
    return hmac.new(salted, address.encode("utf-8", "replace"), "sha256").hexdigest()


def _using() -> str:
    return router.db_for_write(Suppression)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The result of importing a CSV file."""

    added: int
    known: int
    refused: list[dict[str, Any]] = field(default_factory=list)
    """The lines that are no valid entry, as ``{"line": 3, "reason": "..."}``."""


def write_csv(
    file: TextIO, rows: QuerySet[Suppression], *, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write entries as CSV and return how many; calls ``advance`` with the count as it goes."""
    count = -1  # do not count the header line
    for line in csv_lines(rows):
        file.write(line)
        count += 1
        if count and count % _CHUNK == 0:
            advance(count)
    return count


def csv_lines(rows: QuerySet[Suppression]) -> Iterator[str]:
    """Yield the lines of a CSV file of entries, reading them in chunks."""
    yield spreadsheets.line(CSV_COLUMNS)
    for row in rows.order_by("pk").iterator(_CHUNK):
        yield spreadsheets.line(_cell(getattr(row, name)) for name in CSV_COLUMNS)


def read_csv(
    file: Iterable[str], *, advance: Callable[[int], None] = lambda _: None
) -> ImportReport:
    """Add the entries of a CSV file; the report gives the reason for each line refused.

    The first line names the columns. ``address`` (or ``email``) is required, or ``digest`` for
    entries whose address was erased; without either, ``ValueError`` is raised. Reads in chunks and
    calls ``advance`` with the number of lines so far.
    """
    done, added, refused = 0, 0, []
    for chunk in batched(_csv_rows(file), _CHUNK):
        entries = []
        for number, cells in chunk:
            try:
                if isinstance(cells, csv.Error):
                    raise ValueError(f"The line is no CSV: {cells}.")
                entries.append(_csv_entry(cells))
            except ValueError as error:
                refused.append({"line": number, "reason": str(error)})
        added += insert(entries)
        done += len(chunk)
        advance(done)
    return ImportReport(added, done - added - len(refused), refused)


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str] | csv.Error]]:
    """Yield the number and the named cells of each line that is not empty, or its error."""
    lines = spreadsheets.read(file)
    _, heading = next(lines, (0, []))
    if isinstance(heading, csv.Error):
        raise ValueError(f"The first line is no CSV: {heading}.")
    names = [name.strip().lower().lstrip("\ufeff") for name in heading]
    names = [_COLUMN_ALIASES.get(name, name) for name in names]
    if not {"address", "digest"} & set(names):
        raise ValueError(
            f"The first line must name a column 'address'; it names {', '.join(names) or 'none'}."
        )
    for number, cells in lines:
        if isinstance(cells, csv.Error):
            yield number, cells
        elif any(cells):
            values = (spreadsheets.unescape(cell.strip()) for cell in cells)
            yield number, dict(zip(names, values, strict=False))


def _csv_entry(cells: Mapping[str, str]) -> Suppression:
    """Return the entry of a line; an unknown reason becomes its note."""
    reason, note = cells.get("reason", ""), cells.get("note", "")
    if reason not in Reason.values:
        reason, note = Reason.MANUAL, note or reason
    expires_at = None
    if cells.get("expires_at"):
        expires_at = parse_datetime(cells["expires_at"])
        if expires_at is None:
            raise ValueError(f"expires_at must be a time in ISO 8601; it is {cells['expires_at']}.")
        if is_naive(expires_at):
            expires_at = make_aware(expires_at)
    return entry(
        cells.get("address", ""),
        found_by=cells.get("digest", ""),
        reason=reason,
        scope=cells.get("scope", ""),
        note=note,
        expires_at=expires_at,
    )


def _cell(value: Any) -> str:
    text = "" if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)
    return spreadsheets.escape(text)
