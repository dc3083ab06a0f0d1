"""A message's fields and attributes are stored with their current values."""

from __future__ import annotations

import json
import sys
from email.charset import QP, Charset
from functools import cached_property
from typing import Any

import django
import pytest
from anymail.message import AnymailMessage
from anymail.utils import UNSET
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.functional import lazystr

from django_epica_mail.exceptions import UnstorableMessage
from django_epica_mail.messages import fields

MODERN = django.VERSION >= (6, 0)


class Order(EmailMultiAlternatives):
    """A site's own class, with data, behaviour and private names."""

    content_subtype = "html"
    tags = ("order",)
    handler = object()  # cannot be stored, but the class defines it again
    _token = "secret"

    def total(self) -> int:
        return 7

    @property
    def customer(self) -> str:
        return "Ayşe"

    @staticmethod
    def currency() -> str:
        return "TRY"

    @cached_property
    def invoice(self) -> str:
        return "computed"


class RushOrder(Order):
    tags = ("order", "rush")


class WithComputedBody(EmailMultiAlternatives):
    @property
    def body(self) -> str:
        return "Computed"

    @body.setter
    def body(self, value: str) -> None:
        pass


def message(**attributes: Any) -> EmailMessage:
    made = EmailMessage("Subject", "Body", "from@example.com", ["to@example.com"])
    vars(made).update(attributes)
    return made


def round_trip(mail: EmailMessage) -> dict[str, Any]:
    return fields.unpack(json.loads(json.dumps(fields.pack(mail))))


def test_a_plain_message_is_stored_as_djangos_fields_only() -> None:
    assert fields.pack(message()) == {
        "subject": "Subject",
        "from_email": "from@example.com",
        "to": ["to@example.com"],
        "cc": [],
        "bcc": [],
        "reply_to": [],
        "extra_headers": {},
        "body": "Body",
        "content_subtype": "plain",
        "encoding": None,
    }


def test_all_of_djangos_fields_are_restored() -> None:
    values = {
        "subject": "Şubat",
        "from_email": "Shop <shop@example.com>",
        "to": ("to@example.com",),
        "cc": ["cc@example.com"],
        "bcc": ["bcc@example.com"],
        "reply_to": ["reply@example.com"],
        "extra_headers": {"X-Order": "7"},
        "body": "Body\0ğ",
        "content_subtype": "html",
        "encoding": "iso-8859-9",
    }
    assert set(values) == set(fields.FIELDS)
    assert round_trip(message(**values)) == values


def test_pack_fields_stores_only_the_named_fields() -> None:
    assert fields.pack_fields(message(), ("subject", "to")) == {
        "subject": "Subject",
        "to": ["to@example.com"],
    }


def test_a_field_of_another_type_is_stored_as_text() -> None:
    class Address:
        def __str__(self) -> str:
            return "to@example.com"

    state = round_trip(message(to=[Address()], subject=lazystr("Lazy"), body=Address()))
    assert (state["to"], state["subject"]) == (["to@example.com"], "Lazy")
    assert state["body"] == "to@example.com"


@pytest.mark.parametrize("name", ["content_subtype", "encoding"])
def test_a_subtype_or_encoding_without_a_json_form_is_refused(name: str) -> None:
    with pytest.raises(UnstorableMessage, match=f"{name!r} of type object contains a builtins"):
        fields.pack(message(**{name: object()}))


@pytest.mark.parametrize("value", [object(), [object()], {"a": print}, {1j}], ids=str)
def test_an_attribute_without_a_json_form_is_refused(value: Any) -> None:
    with pytest.raises(UnstorableMessage, match=r"'context' of type \w+ contains a .*: use text"):
        fields.pack(message(context=value))


def test_an_attribute_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnstorableMessage, match="'loop' of type list contains itself"):
        fields.pack(message(loop=loop))


def test_an_error_does_not_contain_the_value() -> None:
    with pytest.raises(UnstorableMessage) as raised:
        fields.pack(message(context={"password": "hunter2", "connection": object()}))
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_public_attributes_of_the_class_and_the_object_are_stored() -> None:
    order: Any = Order("Subject")
    order.number = 7
    state = round_trip(order)
    assert set(state) - set(fields.FIELDS) == {"tags", "number"}
    assert (state["tags"], state["number"], state["content_subtype"]) == (("order",), 7, "html")


def test_a_subclass_overrides_and_the_object_overrides_both() -> None:
    order: Any = RushOrder("Subject")
    assert round_trip(order)["tags"] == ("order", "rush")
    order.tags = ["own"]
    assert round_trip(order)["tags"] == ["own"]


def test_an_evaluated_cached_property_is_not_stored() -> None:
    order = Order("Subject")
    assert order.invoice == "computed"
    assert "invoice" in vars(order)
    assert "invoice" not in fields.pack(order)


def test_private_and_excluded_attributes_are_not_stored() -> None:
    excluded = {"_own": 1, "connection": object(), "anymail_status": object(), "alternatives": [1]}
    assert fields.pack(message(**excluded)) == fields.pack(message())


def test_a_case_insensitive_mapping_of_headers_becomes_a_dict() -> None:
    class Headers(dict[str, str]):
        def __getitem__(self, key: str) -> str:
            return {name.lower(): value for name, value in self.items()}[key.lower()]

        def __contains__(self, key: object) -> bool:
            return str(key).lower() in {name.lower() for name in self}

    headers = Headers({"from": "f@example.com", "x-own": "1"})
    stored = round_trip(message(extra_headers=headers))["extra_headers"]
    assert type(stored) is dict
    assert stored == {"from": "f@example.com", "From": "f@example.com", "x-own": "1"}


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (EmailMessage, EmailMessage),
        (EmailMultiAlternatives, EmailMultiAlternatives),
        (RushOrder, RushOrder),
        (WithComputedBody, EmailMultiAlternatives),
        (type("Plain", (EmailMessage,), {"to": property(lambda _: [], print)}), EmailMessage),
        (type("Listed", (EmailMessage,), {"attachments": property(list, print)}), EmailMessage),
    ],
    ids=lambda cls: cls.__name__,
)
def test_a_class_that_computes_a_field_is_rebuilt_as_djangos(cls: Any, expected: type) -> None:
    assert fields.class_to_rebuild(object.__new__(cls)) is expected


def test_a_computed_field_is_stored_with_its_value() -> None:
    assert fields.pack(WithComputedBody("Subject"))["body"] == "Computed"


@pytest.mark.skipif(MODERN, reason="Django 6.0 removed both")
def test_a_charset_and_multipart_subtypes_are_restored() -> None:
    charset = Charset("utf-8")
    charset.body_encoding = QP
    mail = message(encoding=charset, mixed_subtype="related", alternative_subtype="mixed")
    state = round_trip(mail)
    assert vars(state["encoding"]) == vars(charset)
    assert (state["mixed_subtype"], state["alternative_subtype"]) == ("related", "mixed")


@pytest.mark.skipif(not MODERN, reason="Django 5.2 supports both")
def test_a_charset_and_multipart_subtypes_are_converted() -> None:
    mail = message(encoding=Charset("latin-1"), mixed_subtype="related", alternative_subtype="x")
    form = fields.pack(mail)
    assert (form["mixed_subtype"], form["alternative_subtype"]) == ("related", "x")
    state = fields.unpack(form)
    assert state["encoding"] == "iso-8859-1"
    assert not {"mixed_subtype", "alternative_subtype"} & set(state)


def test_anymails_unset_attributes_are_stored_by_name_only() -> None:
    mail = AnymailMessage("Subject", to=["to@example.com"], tags=["a"])
    names = fields.unset_names(mail)
    assert "metadata" in names
    assert "tags" not in names
    form = fields.pack(mail)
    assert form["tags"] == ["a"]
    assert not set(names) & set(form)
    assert fields.unset(names) == dict.fromkeys(names, UNSET)


def test_without_anymail_no_attribute_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "anymail.utils")
    assert fields.unset_names(message(tags=None)) == []
    assert fields.unset(["metadata"]) == {}
    assert fields.pack(message(tags=None))["tags"] is None
