"""A batch: what a worker holds, and until when it may begin its mails."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

from django_epica_mail import conf
from django_epica_mail.delivery.batch import batch_of


def row(**values: object) -> SimpleNamespace:
    usual = {
        "transport": "smtp",
        "lease_token": uuid.UUID(int=7),
        "too_old": False,
        "is_expired": False,
        "has_suppressions": False,
        "has_attachments": False,
    }
    return SimpleNamespace(**{**usual, **values})


def test_a_batch_tells_what_was_true_of_any_of_its_rows() -> None:
    batch = batch_of([row(), row(too_old=True, has_attachments=True)], "default", 100.0)
    assert (batch.transport, batch.token) == ("smtp", uuid.UUID(int=7))
    assert [mail.too_old for mail in batch.mails] == [False, True]
    assert (batch.has_attachments, batch.has_suppressions) == (True, False)
    assert (batch.is_probe, batch.is_limited, batch.is_slowed) == (False, False, False)


def test_mails_are_begun_before_the_lease_ends() -> None:
    batch = batch_of([row()], "default", 100.0)
    assert batch.begin_until == 100.0 + conf.BEGIN_SECONDS
    settings = conf.get()
    assert batch.outlasts_until == 100.0 + settings.lease_seconds - settings.send_timeout
