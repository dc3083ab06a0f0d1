"""``assert_mail_renders``: what it demands of templates, in each language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.utils.translation import gettext

from django_epica_mail.testing import assert_mail_renders

GOOD = {
    "_subject.txt": "{% load i18n %}{% translate 'Monday' %}: {{ number }}\n",
    ".txt": "Order {{ number }}{% if note %}: {{ note }}{% endif %}",
    ".html": "<p>Order {{ number }}</p>",
}


@pytest.fixture
def write(settings: Any, tmp_path: Path) -> Any:
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    settings.LANGUAGES = [("en", "English"), ("tr", "Turkish")]

    def write(**changed: str | None) -> None:
        suffixes = {"subject": "_subject.txt", "text": ".txt", "html": ".html"}
        for suffix, content in {**GOOD, **{suffixes[it]: changed[it] for it in changed}}.items():
            if content is not None:
                (tmp_path / f"order{suffix}").write_text(content)

    return write


def test_a_mail_is_rendered_in_every_language(write) -> None:
    write()
    mails = assert_mail_renders("order", {"number": 7})
    assert {code: it.subject for code, it in mails.items()} == {
        "en": "Monday: 7",
        "tr": "Pazartesi: 7",
    }
    assert list(assert_mail_renders("order.html", {"number": 7}, languages=["tr"])) == ["tr"]


def test_a_context_may_be_a_function_that_knows_the_language(write) -> None:
    write()
    mails = assert_mail_renders("order", lambda: {"number": gettext("Monday")})
    assert mails["tr"].text == "Order Pazartesi"


def test_without_a_context_the_sample_of_the_previews_is_taken(write, epica_mail) -> None:
    write()
    with pytest.raises(ValueError, match="no sample context for 'order'"):
        assert_mail_renders("order")
    epica_mail(PREVIEWS={"order": {"number": 8}})
    assert assert_mail_renders("order")["en"].text == "Order 8"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"subject": None}, "The subject is missing."),
        ({"subject": "{% if no %}x{% endif %}"}, "The subject is empty."),
        ({"html": None}, "The html is missing."),
        ({"text": "{% if no %}x{% endif %}"}, "The text is empty."),
        ({"subject": "One\nTwo {{ number }}"}, "The subject has 2 lines; the second is 'Two 7'."),
        ({"text": "{{ nobody.name }}x"}, "The variable 'nobody.name' is missing"),
        ({"html": "{% verbatim %}{{ x }}{% endverbatim %}"}, "The html still contains '{{'"),
        ({"text": "Dear %(name)s"}, "The text still contains '%(name)s'"),
        ({"text": "{% nonsense %}"}, "TemplateSyntaxError"),
    ],
)
def test_each_fault_is_found_in_each_language(write, changed, said) -> None:
    write(**changed)
    with pytest.raises(AssertionError) as caught:
        assert_mail_renders("order", {"number": 7})
    first, *lines = str(caught.value).splitlines()
    assert first == "The mail 'order' is not as it should be:"
    assert [line[:5] for line in lines] == ["  en:", "  tr:"]
    assert all(said in line for line in lines)


def test_a_part_or_a_variable_may_be_left_out(write) -> None:
    write(html=None, subject=None, text="{{ nobody }}x")
    assert_mail_renders("order", {}, parts=["text"], optional=["nobody"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": ["body"]}, "'body'"),
        ({"languages": ["de"]}, "LANGUAGES"),
        ({"languages": []}, "languages is empty"),
    ],
)
def test_what_cannot_be_meant_is_an_error(write, options, said) -> None:
    write()
    with pytest.raises(ValueError, match=said):
        assert_mail_renders("order", {"number": 7}, **options)


def test_each_language_has_a_snapshot(write, tmp_path, monkeypatch) -> None:
    write()
    monkeypatch.setenv("EPICA_MAIL_UPDATE_SNAPSHOTS", "1")
    assert_mail_renders("order.html", {"number": 7}, snapshots=tmp_path / "snapshots")
    monkeypatch.delenv("EPICA_MAIL_UPDATE_SNAPSHOTS")
    assert_mail_renders("order", {"number": 7}, snapshots=tmp_path / "snapshots")
    assert (tmp_path / "snapshots" / "order.tr.txt").read_text() == (
        "Subject: Pazartesi: 7\n\n--- text/plain\nOrder 7\n\n--- text/html\n<p>Order 7</p>\n"
    )
    with pytest.raises(AssertionError, match=r"order\.en\.txt"):
        assert_mail_renders("order", {"number": 8}, snapshots=tmp_path / "snapshots")
