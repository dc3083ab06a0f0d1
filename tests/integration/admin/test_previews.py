"""Template previews: the templates that the site names, in each of its languages, sandboxed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.integration.admin.pages import client_of, html_of, url

LIST, PREVIEWS, FRAME = "emaillog_changelist", "emaillog_previews", "emaillog_preview"


def sample() -> dict[str, Any]:
    """Return a context that depends on the language."""
    from django.utils.translation import gettext

    return {"name": gettext("Monday")}


@pytest.fixture
def reader(site: None, settings: Any, epica_mail: Callable[..., None], tmp_path: Path) -> Client:
    """Log in a user who may read e-mails, on a site with three previews."""
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    settings.LANGUAGES = [("en", "English"), ("tr", "Türkçe")]
    (tmp_path / "greeting.html").write_text("<p>Hi {{ name }}</p><script>alert(1)</script>")
    (tmp_path / "greeting.txt").write_text("Hi {{ name }} & co")
    (tmp_path / "greeting_subject.txt").write_text("A greeting for {{ name }}")
    (tmp_path / "broken.txt").write_text("{% nonsense %}")
    (tmp_path / "secret.txt").write_text("not named in the settings")
    epica_mail(
        PREVIEWS={
            "greeting": f"{__name__}.sample",
            "broken": {},
            "emails/welcome": {"user_name": "Ayşe", "action_url": "https://shop.example.com/"},
        }
    )
    return client_of("view_emaillog", "view_content")


def test_templates_with_a_sample_context_are_offered(reader) -> None:
    text = html_of(reader, PREVIEWS)
    for name in ("greeting", "broken", "emails/welcome"):
        assert f'">{name}</a></li>' in text
    assert "secret" not in text


@pytest.mark.parametrize(("language", "day"), [("en", "Monday"), ("tr", "Pazartesi")])
def test_a_preview_is_rendered_in_the_chosen_language(reader, language, day) -> None:
    query = {"template": "greeting", "language": language}
    text = html_of(reader, PREVIEWS, **query)
    assert f"A greeting for {day}" in text
    assert f"Hi {day} &amp; co" in text
    frame = reader.get(url(FRAME), query)
    assert frame.content.decode() == f"<!doctype html>\n<p>Hi {day}</p>"
    assert frame["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_templates_of_the_package_can_be_previewed(reader) -> None:
    text = html_of(reader, PREVIEWS, template="emails/welcome", language="tr", width="phone")
    assert "epica-frame-phone" in text
    assert "template=emails%2Fwelcome&amp;language=tr&amp;images=0" in text
    frame = reader.get(url(FRAME), {"template": "emails/welcome", "language": "tr"})
    assert "Hesabınız" in frame.content.decode()


def test_a_broken_template_shows_its_error(reader) -> None:
    text = html_of(reader, PREVIEWS, template="broken")
    assert "TemplateSyntaxError" in text
    assert reader.get(url(FRAME), {"template": "broken"}).status_code == 404


@pytest.mark.parametrize("name", ["secret", "secret.txt", "../settings.py", ""])
def test_other_templates_are_never_rendered(reader, name) -> None:
    assert "not named" not in html_of(reader, PREVIEWS, template=name)
    assert reader.get(url(FRAME), {"template": name}).status_code == 404


def test_the_list_of_mails_links_to_the_previews(reader, epica_mail) -> None:
    assert url(PREVIEWS) in html_of(reader, LIST)
    epica_mail(PREVIEWS={})
    assert "previews/" not in html_of(reader, LIST)


@pytest.mark.parametrize("value", [[], {"x": 3}, {"": {}}, {3: {}}])
def test_an_invalid_setting_is_refused(value) -> None:
    from django.core.exceptions import ImproperlyConfigured

    from django_epica_mail import conf

    with pytest.raises(ImproperlyConfigured, match="PREVIEWS"):
        conf.parse({"PREVIEWS": value})


def test_a_template_is_one_click_away_and_says_what_it_missed(reader, epica_mail, tmp_path) -> None:
    epica_mail(PREVIEWS={"hello": {"name": "Ayşe", "order": {"number": 7}}})
    (tmp_path / "hello.txt").write_text(
        "{{ name }} {{ order.number }} {{ order.total }} {{ nobody }}{% if vip %}!{% endif %}"
    )
    (tmp_path / "hello_subject.txt").write_text("Order {{ title }}")
    (link,) = re.findall(r'<a href="\?(template=hello[^"]*)"', html_of(reader, PREVIEWS))
    text = reader.get(f"{url(PREVIEWS)}?{link.replace('&amp;', '&')}").content.decode()
    assert "Ayşe 7" in text
    missing = re.findall(r'<li><code dir="ltr">([^<]*)</code>', text)
    assert missing == ["nobody", "order.total", "title"]


def test_a_template_that_gets_everything_has_no_notice(reader) -> None:
    html = html_of(reader, PREVIEWS, template="emails/welcome", language="en")
    assert "did not get them" not in html
