"""Sample contexts of templates, and the languages that they are shown in."""

from __future__ import annotations

from typing import Any

import pytest

from django_epica_mail.queueing.rendering import samples


def context() -> dict[str, Any]:
    return {"title": "Order"}


def test_a_sample_is_a_dict_or_what_a_function_returns(epica_mail) -> None:
    epica_mail(PREVIEWS={"a": {"title": "Order"}, "b": f"{__name__}.context"})
    assert samples.context_of("a") == samples.context_of("b") == {"title": "Order"}
    with pytest.raises(KeyError):
        samples.context_of("c")


def test_the_languages_are_those_that_the_site_offers(settings) -> None:
    assert samples.languages() == [settings.LANGUAGE_CODE]  # Django's own LANGUAGES are a hundred
    settings.LANGUAGES = [("en", "English"), ("tr", "Turkish")]
    assert samples.languages() == ["en", "tr"]
    settings.USE_I18N = False
    assert samples.languages() == [settings.LANGUAGE_CODE]


def test_missing_variables_are_named_but_those_that_are_asked_about_are_not() -> None:
    given = {"title": "Order"}
    assert samples.missing_variables("emails/notification.html", given) == ["body"]
    assert samples.missing_variables("emails/notification", {**given, "body": "Hi"}) == []
