"""The suppression list: who is not sent to, and whom of a batch it holds back."""

from __future__ import annotations

import contextlib
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
from django.db import router
from django.db.models import BooleanField, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.utils.dateparse import parse_datetime
from django.utils.encoding import force_bytes
from django.utils.timezone import is_naive, make_aware

from django_epica_mail import clock, conf, rules
from django_epica_mail._compat import batched
from django_epica_mail.messages import addresses
from django_epica_mail.models import EmailLog, EmailRecipient, Suppression

Reason = Suppression.Reason

_PORTION = 400
"""How many addresses are looked up, or added, at a time."""


_DIGEST_LENGTH = 64


def normalise(address: str) -> str:
    """Return an address as the list knows it: bare, in lower case, its domain in ASCII.

    What is before the @ may by RFC 5321, section 2.4, be case-sensitive, and nowhere is.
    """
    bare = addresses.bare(address).strip().lower()
    local, at, domain = bare.rpartition("@")
    if not domain.isascii():
        with contextlib.suppress(UnicodeError):  # no domain, and can be found as it is
            domain = domain.encode("idna").decode()
    return f"{local}{at}{domain}"[:320]


def digest(address: str) -> str:
    """Return the HMAC by which an address is found, also when the list no longer holds it."""
    return _digest(_keys()[0], normalise(address))


def add(
    address: str,
    *,
    reason: str = Reason.MANUAL,
    scope: str = "",
    note: str = "",
    expires_at: datetime | None = None,
) -> bool:
    """Hold mail to an address back from now on; return whether it was not for this reason before.

    ``scope`` is a category, or empty for all mail. Raises ``ValueError`` for what is no address.
    """
    return bool(
        insert([entry(address, reason=reason, scope=scope, note=note, expires_at=expires_at)])
    )


def entry(
    address: str,
    *,
    reason: str,
    scope: str = "",
    note: str = "",
    expires_at: datetime | None = None,
    found_by: str = "",
) -> Suppression:
    """Return an entry for ``insert``; without an address, for who is known by a digest alone.

    Raises ``ValueError`` for what is no address, reason or category.
    """
    bare = normalise(address)
    local, _, domain = bare.rpartition("@")
    is_erased = not bare and len(found_by) == _DIGEST_LENGTH and found_by.isalnum()
    if not is_erased and (not (local and domain) or not bare.isprintable() or " " in bare):
        raise ValueError(f"{address!r} is no e-mail address.")
    if reason not in Reason.values:
        raise ValueError(f"reason must be one of {', '.join(Reason.values)}; it is {reason!r}.")
    if scope:
        rules.check_name("scope", scope)
    return Suppression(
        address=bare,
        digest=found_by if is_erased else digest(bare),
        scope=scope,
        reason=reason,
        note=note,
        expires_at=expires_at,
    )


def insert(rows: Sequence[Suppression]) -> int:
    """Insert the entries that are not there; return how many. Those that were keep their note."""
    entries = Suppression.objects.using(_using())
    count = 0
    for portion in batched(rows, _PORTION):
        entries.bulk_create(portion, ignore_conflicts=True)
        count += entries.filter(pk__in=[row.pk for row in portion]).count()
    return count


def add_digest(found_by: str, *, reason: str, scope: str = "", note: str = "") -> bool:
    """Hold mail back from an address of which only the digest is known; see ``add``."""
    return bool(insert([entry("", reason=reason, scope=scope, note=note, found_by=found_by)]))


def remove(address: str, *, scope: str | None = None, reason: str | None = None) -> int:
    """Send to an address again; return how many entries were lifted.

    ``scope`` and ``reason`` lift those alone; without them all are.
    """
    rows = Suppression.objects.using(_using()).filter(match(address))
    if scope is not None:
        rows = rows.filter(scope=scope)
    if reason is not None:
        rows = rows.filter(reason=reason)
    count, _ = rows.delete()
    return count


def match(address: str) -> Q:
    """Return the condition by which the entries of an address are found."""
    wanted = normalise(address)
    return Q(digest__in=[_digest(key, wanted) for key in _keys()]) | Q(address=wanted)


def is_suppressed(address: str, category: str = "") -> bool:
    """Tell whether mail of a category to an address is held back."""
    wanted = normalise(address)
    return _reason(_listed([wanted], _using()).get(wanted, ()), category) is not None


def exists() -> RawSQL:
    """Return an expression that tells whether the list has any entry.

    For a query that is made in any case: so a site without a list pays no query for it.
    """
    table = Suppression._meta.db_table
    # A constant. Built as a subquery of the ORM it would cost as much as the rest of the claim.
    sql = f"EXISTS(SELECT 1 FROM {table})"  # noqa: S608
    return RawSQL(sql, (), output_field=BooleanField())  # noqa: S611


def held_back(
    mails: Iterable[EmailLog], using: str
) -> tuple[dict[UUID, dict[int, str]], dict[UUID, int]]:
    """Return the recipients of mails not to be sent to, and how many each mail has left to try.

    The first is the reason by mail and position; only mails with such recipients are in it.
    """
    categories = {mail.pk: mail.category for mail in mails}
    rows = EmailRecipient.objects.using(using).filter(email_id__in=categories, outcome="")
    recipients = [
        (mail, position, normalise(address))
        for mail, position, address in rows.values_list("email_id", "position", "address")
    ]
    listed = _listed({address for _, _, address in recipients}, using)
    found: dict[UUID, dict[int, str]] = defaultdict(dict)
    left: dict[UUID, int] = defaultdict(int)
    for mail, position, address in recipients:
        left[mail] += 1
        reason = _reason(listed.get(address, ()), categories[mail])
        if reason is not None:
            found[mail][position] = reason
            left[mail] -= 1
    return dict(found), dict(left)


def _listed(wanted: Iterable[str], using: str) -> dict[str, list[tuple[str, str]]]:
    """Return the entries there are of addresses: scope and reason of each."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for portion in batched(wanted, _PORTION):
        whose = {_digest(key, address): address for address in portion for key in _keys()}
        rows = (
            Suppression.objects.using(using)
            .filter(Q(digest__in=whose) | Q(address__in=portion))
            .filter(Q(expires_at=None) | Q(expires_at__gt=clock.now()))
        )
        for address, by, scope, reason in rows.values_list("address", "digest", "scope", "reason"):
            found[address or whose[by]].append((scope, reason))
    return found


def _reason(entries: Iterable[tuple[str, str]], category: str) -> str | None:
    """Return the gravest reason to hold back mail of a category; ``None`` if there is none."""
    exempt = category in conf.get().transactional
    reasons = {
        reason
        for scope, reason in entries
        if scope in ("", category) and not (exempt and reason == Reason.UNSUBSCRIBE)
    }
    return next((reason for reason in Reason.values if reason in reasons), None)


def _keys() -> Sequence[str | bytes]:
    """Return the keys of the digests; the first is for new ones."""
    return conf.get().suppression_keys or (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)


def _digest(key: str | bytes, address: str) -> str:
    salted = hashlib.sha256(b"epica_mail.suppression" + force_bytes(key)).digest()
    return hmac.new(salted, address.encode("utf-8", "replace"), "sha256").hexdigest()


def _using() -> str:
    return router.db_for_write(Suppression)


CSV_COLUMNS = ("address", "scope", "reason", "note", "created_at", "expires_at", "digest")

_CSV_PORTION = 400
_CALLED_ALSO = {"email": "address", "e-mail": "address", "email address": "address"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take a cell that begins so for; OWASP, CSV Injection."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What a file came to."""

    added: int
    known: int
    refused: list[dict[str, Any]] = field(default_factory=list)
    """``{"line": 3, "reason": "..."}``: what is no entry."""


def write_csv(
    file: TextIO, rows: QuerySet[Suppression], *, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write entries as CSV, and return how many; ``advance`` is told after each portion."""
    count = -1  # the first line names the columns
    for line in csv_lines(rows):
        file.write(line)
        count += 1
        if count and count % _CSV_PORTION == 0:
            advance(count)
    return count


def csv_lines(rows: QuerySet[Suppression]) -> Iterator[str]:
    """Yield the lines of a CSV file of entries, reading them in portions."""
    writer: Any = csv.writer(_Echo())
    yield writer.writerow(CSV_COLUMNS)
    for row in rows.order_by("pk").iterator(_CSV_PORTION):
        yield writer.writerow([_cell(getattr(row, name)) for name in CSV_COLUMNS])


class _Echo:
    """Takes what ``csv`` writes, and gives it back."""

    def write(self, value: str) -> str:
        return value


def read_csv(
    file: Iterable[str], *, advance: Callable[[int], None] = lambda _: None
) -> ImportReport:
    """Add the entries of a CSV file, and say of each line that is none why.

    Its first line names the columns, of which ``address`` (or ``email``) is enough; of an entry
    whose address was erased it is ``digest``. Goes in portions, and calls ``advance`` with the
    number of lines so far. Raises ``ValueError`` for a file without such a column.
    """
    done, added, refused = 0, 0, []
    for portion in batched(_csv_rows(file), _CSV_PORTION):
        entries = []
        for number, cells in portion:
            try:
                entries.append(_csv_entry(cells))
            except ValueError as error:
                refused.append({"line": number, "reason": str(error)})
        added += insert(entries)
        done += len(portion)
        advance(done)
    return ImportReport(added, done - added - len(refused), refused)


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the named cells of each line that says something."""
    # Python 3.10 reads no line with a NUL; this is no part of an address either.
    reader = csv.reader(line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in file)
    names = [name.strip().lower().lstrip("\ufeff") for name in next(reader, [])]
    names = [_CALLED_ALSO.get(name, name) for name in names]
    if not {"address", "digest"} & set(names):
        raise ValueError(
            f"The first line must name a column 'address'; it names {', '.join(names) or 'none'}."
        )
    for cells in reader:
        if any(cells):
            yield reader.line_num, dict(zip(names, map(_plain, cells), strict=False))


def _csv_entry(cells: Mapping[str, str]) -> Suppression:
    """Return the entry that the cells of a line mean; a reason not known to us becomes a note."""
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
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain(cell: str) -> str:
    text = cell.strip()
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text
