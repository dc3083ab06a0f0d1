"""Columns that hold a list: what somebody has damaged is left out, not raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection, models
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.models.lists import JSONList, is_count, is_name, is_refusal

REFUSAL = {"index": 0, "error": "ValueError", "rule": "draft._draft", "reason": ""}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.django_db
def test_items_of_the_right_form_are_kept_in_order() -> None:
    batch = EmailBatch.objects.create(refused=[REFUSAL, {"index": "x"}, 1, {**REFUSAL, "index": 2}])
    batch.refresh_from_db()
    assert [it["index"] for it in batch.refused] == [0, 2]
    assert list(EmailBatch.objects.values_list("refused", flat=True)) == [batch.refused]


@pytest.mark.django_db
@pytest.mark.parametrize("value", [{}, "abc", 5, [None, {}, 1]])
def test_what_is_no_list_of_names_is_read_as_an_empty_one(queue_mail, value) -> None:
    log = queue_mail()
    EmailLog.objects.update(fallbacks=value)
    assert EmailLog.objects.get(pk=log.pk).fallbacks == []


@given(JSON)
def test_whatever_is_stored_a_list_of_items_is_read(value: Any) -> None:
    for is_item in (is_name, is_count, is_refusal):
        found = JSONList(of=is_item).from_db_value(json.dumps(value), None, connection)
        assert isinstance(found, list)
        assert all(map(is_item, found))


def test_deep_nesting_is_read_as_an_empty_list() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert JSONList().from_db_value(deep, None, connection) == []


def test_migrations_know_it_as_djangos_field() -> None:
    ours, djangos = (it(default=list, blank=True) for it in (JSONList, models.JSONField))
    assert ours.deconstruct() == djangos.deconstruct()
