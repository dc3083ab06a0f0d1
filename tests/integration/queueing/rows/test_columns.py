"""Rows are written as Django writes them, or else by Django."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import OperationalError

from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient
from django_epica_mail.outbox import enqueue_many
from django_epica_mail.queueing.rows import columns, sql

MODELS = (EmailLog, EmailRecipient, DeliveryAttempt)
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def fresh_comparison() -> Iterator[None]:
    columns.writes_like_django.cache_clear()
    yield
    columns.writes_like_django.cache_clear()


def messages(number: int) -> list[EmailMessage]:
    return [EmailMessage("Sipariş", "Çay", "a@example.com", ["b@example.com"])] * number


def values(given: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    return lambda *args: [f"{it}!" if it == "ş'\\%s" else it for it in given(*args)]


def test_every_model_is_written_as_django_writes_it(caplog) -> None:
    assert [columns._difference(model, "default") for model in MODELS] == [""] * 3
    assert all(columns.writes_like_django(model, "default") for model in MODELS)
    assert caplog.records == []


@pytest.mark.parametrize("name", ["obj", "adapted"], ids=["psycopg", "psycopg2"])
def test_a_value_that_the_driver_wraps_is_compared_itself(name: str) -> None:
    assert columns._plain(SimpleNamespace(**{name: ["ş"]})) == ["ş"]


@pytest.mark.parametrize(
    "changed",
    [
        ("values_of", values(columns.values_of)),
        ("cells_of", lambda *_: "(now())"),
        ("columns_of", lambda model, using: []),
        ("columns_of", None),
    ],
    ids=["values", "cells", "columns", "error"],
)
def test_what_differs_is_left_to_django_and_logged_once(monkeypatch, caplog, changed) -> None:
    monkeypatch.setattr(columns, *changed)
    columns.examine()
    wanted = [model._meta.label for model in MODELS]
    said = [it.getMessage() for it in caplog.records]
    assert [next(it for it in wanted if it in text) for text in said] == wanted
    assert all("So Django writes them" in text for text in said)

    def refuse(*_: Any) -> None:
        raise AssertionError("our own SQL was used")

    monkeypatch.setattr(sql, "_execute", refuse)
    monkeypatch.setattr(sql, "_copy", refuse)
    for number in (1, 150):  # by INSERT, and by COPY where there is one
        enqueue_many(messages(number))
    log = EmailLog.objects.order_by("id").last()
    assert log is not None
    assert (EmailLog.objects.count(), log.subject, log.status) == (151, "Sipariş", "queued")
    assert EmailRecipient.objects.filter(address="b@example.com").count() == 151
    assert len(caplog.records) == 3


def test_a_database_that_is_down_is_no_difference(monkeypatch, caplog) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(columns, "columns_of", refuse)
        columns.examine()
        with pytest.raises(OperationalError):
            columns.writes_like_django(EmailLog, "default")
    assert columns.writes_like_django(EmailLog, "default")
    assert caplog.records == []


def test_the_rest_of_a_mails_life_does_without_our_own_rows_too(
    monkeypatch, smtp, queue_mail, deliver
) -> None:
    monkeypatch.setattr(columns, "columns_of", None)
    queue_mail()
    assert deliver() == 1
    assert len(smtp.accepted) == 1
    assert DeliveryAttempt.objects.get().number == 1


def test_the_comparison_takes_little_time() -> None:
    columns.examine()
    columns.writes_like_django.cache_clear()
    began = time.process_time()
    columns.examine()
    assert time.process_time() - began < 0.05
