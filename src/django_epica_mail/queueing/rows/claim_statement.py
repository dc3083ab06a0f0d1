"""The one statement by which PostgreSQL settles mail, finds what is due, and claims it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from django_epica_mail import lifecycle, suppression
from django_epica_mail.models import DeliveryAttempt, EmailLog
from django_epica_mail.models.bounds import MOST_SMALL

# Every part of a statement sees the rows as they were before it. It must not claim what it is to
# settle: a mail whose lease has ended may be due again, although its outcome is known here. Values
# are arrays, so that the text stays the same: a driver reads a long text with many values slowly.
_SETTLE = """
    accepted (id, email_id, token, number, transport, worker, seconds, code, reply, provider_id)
        AS (SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::smallint[], %s::text[],
            %s::text[], %s::double precision[], %s::smallint[], %s::text[], %s::text[])),
    settled AS (
        UPDATE {log} AS mail
        SET status = '{sent}', pending = NULL, lease_until = NULL, finished_at = {now},
            attempts = LEAST(attempts, {most}) + 1, tries = LEAST(tries, {most}) + 1,
            failure_kind = '', failure_code = NULL, reply = ''
        FROM accepted
        WHERE mail.id = accepted.email_id AND mail.lease_token = accepted.token
            AND mail.status = '{sending}'
        RETURNING mail.id
    ),
    noted AS (
        INSERT INTO {attempts} (id, email_id, number, transport, worker, created_at, seconds,
            failure_kind, code, reply, provider_id)
        SELECT accepted.id, email_id, number, transport, worker, {now}, seconds, '', code, reply,
            provider_id
        FROM accepted JOIN settled ON settled.id = accepted.email_id
        ON CONFLICT DO NOTHING
    ),
"""
# The lanes are asked in their order, and only until the limit is reached. Rows of another
# transport than the first one's are locked until the statement ends, and stay as they are. Rows are
# compared as a whole, so that no other index than that of claims fits: with statistics from a time
# when nothing waited, PostgreSQL would take another one and sort the backlog. But the NULL of a
# finished row does not end such a comparison: a scan that finds less than it looks for would go on
# over all of them. So a lane is first read from its end, behind which they stand. Only if that
# fills the limit are there enough for a scan from its beginning; fewer are all that there are.
_TAKE = """
WITH {settle} picked AS MATERIALIZED (
    SELECT head.id, lane.position, lane.transport
    FROM unnest(%s::text[], %s::text[], %s::smallint[], %s::timestamptz[])
        WITH ORDINALITY AS lane (queue, transport, level, since, position),
    LATERAL (
        SELECT array_agg(id) AS ids, count(*) AS number FROM (
            SELECT id FROM {log} WHERE {in_lane}
            ORDER BY queue DESC, transport DESC, pending DESC, due_at DESC, id DESC LIMIT {limit}
        ) AS last_rows
    ) AS found,
    LATERAL (
        SELECT id FROM (
            SELECT id FROM {log}
            WHERE found.number < {limit} AND id = ANY (found.ids) AND {in_lane} AND {may_go}
            ORDER BY due_at, id
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS few
        UNION ALL SELECT id FROM (
            SELECT id FROM {log}
            WHERE found.number = {limit} AND {in_lane} AND {may_go}
            ORDER BY queue, transport, pending, due_at, id LIMIT {limit}
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS first_rows
    ) AS head
    LIMIT {limit}
),
claimed AS (
UPDATE {log} AS mail
SET status = '{sending}', pending = NULL, lease_token = %s, lease_until = {lease_until}, worker = %s
WHERE mail.id = ANY (ARRAY(
        SELECT id FROM picked
        WHERE transport = (SELECT transport FROM picked ORDER BY position LIMIT 1)))
    AND mail.status IN ({claimable})
RETURNING {columns},
    mail.give_up_at <= {now} AS too_old,
    coalesce(mail.expires_at <= {now}, false) AS is_expired,
    EXISTS (SELECT 1 FROM {suppressions}) AS has_suppressions,
    EXISTS (SELECT 1 FROM {links} WHERE emaillog_id = mail.id) AS has_attachments
)
"""
_IN_LANE = """(queue, transport, pending, due_at)
                >= (lane.queue, lane.transport, lane.level, lane.since)
            AND (queue, transport, pending, due_at)
                <= (lane.queue, lane.transport, lane.level, {now})"""
_MAY_GO = "status NOT IN ({not_claimable}) {not_held} {not_settled}"
_SELECT_CLAIMED = "SELECT * FROM claimed"
_SELECT_BOTH = """
SELECT both_parts.settled, claimed.*
FROM (SELECT ARRAY(SELECT id FROM settled) AS settled) AS both_parts
LEFT JOIN claimed ON true
"""
_NOT_HELD = {
    "categories": "AND NOT (batch_id IS NOT NULL AND category = ANY (%s))",
    "domains": "AND NOT (domain || ' ' || transport = ANY (%s))",
}


@lru_cache(maxsize=64)
def of(now: str, lease_until: str, limit: int, *, settles: bool, held: tuple[str, ...]) -> str:
    """Return the statement that claims, and that ``settles`` before if wanted.

    ``now`` and ``lease_until`` are SQL; ``held`` names what is held back, ``categories`` or
    ``domains``, whose values the statement takes. It returns all columns of the e-mails claimed,
    and what was true of them, as ``dequeue.take`` says.
    """
    statement = _TAKE + (_SELECT_BOTH if settles else _SELECT_CLAIMED)
    parts = {"settle": _SETTLE if settles else "", "in_lane": _IN_LANE, "may_go": _MAY_GO}
    for name, part in parts.items():
        statement = statement.replace(f"{{{name}}}", part)
    return statement.format(
        attempts=DeliveryAttempt._meta.db_table,
        columns=", ".join(f'mail."{field.column}"' for field in EmailLog._meta.concrete_fields),
        most=MOST_SMALL,
        sent=lifecycle.SUCCEED.target,
        limit=limit,
        now=now,
        lease_until=lease_until,
        log=EmailLog._meta.db_table,
        links=EmailLog.attachments.through._meta.db_table,
        suppressions=suppression.TABLE,
        claimable=_quoted(lifecycle.CLAIMABLE),
        not_held=" ".join(_NOT_HELD[name] for name in held),
        not_settled="AND id NOT IN (SELECT email_id FROM accepted)" if settles else "",
        not_claimable=_quoted(set(lifecycle.Status) - lifecycle.CLAIMABLE),
        sending=lifecycle.CLAIM.target,
    )


def _quoted(statuses: Iterable[lifecycle.Status]) -> str:
    return ", ".join(f"'{status}'" for status in sorted(statuses))
