"""What is refused in the caller, on every version of Django."""

from __future__ import annotations

import copy

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail.serialization import check
from tests import corpus


def message(**fields) -> EmailMessage:
    defaults = {
        "subject": "Subject",
        "body": "Body",
        "from_email": "from@example.com",
        "to": ["to@example.com"],
    }
    return EmailMultiAlternatives(**{**defaults, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "a\nBcc: b@example.com"},
        {"headers": {"X-A": "a\r\nb"}},
        {"headers": {"X-A\nBcc": "b@example.com"}},
        {"headers": {"X A": "b"}},
        {"headers": {"Bcc": "b@example.com"}},
        {"headers": {"bCC": "b@example.com"}},
        {"from_email": "a@example.com\nb"},
        {"to": ["a@example.com\nBcc: b@example.com"]},
        {"cc": ["a@example.com\n"]},
        {"bcc": ["a@example.com\r\nb"]},
        {"reply_to": ["a@example.com\nb"]},
    ],
    ids=str,
)
def test_what_could_inject_a_header_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        check(message(**fields))


def test_an_entry_that_is_not_one_address_is_refused() -> None:
    bad = message(to=["a@example.com, b@example.com"])
    with pytest.raises(ValueError, match=r"."):
        check(bad)


@pytest.mark.parametrize("make", [make for _, make in corpus.CORPUS], ids=dict(corpus.CORPUS))
def test_what_django_can_send_passes_and_is_left_untouched(make) -> None:
    good = make()
    before = copy.copy(vars(good))
    headers = dict(good.extra_headers)
    check(good)
    assert vars(good) == before
    assert good.extra_headers == headers
