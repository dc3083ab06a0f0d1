"""Template previews: those the site names, in each of its languages, in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse


def sample() -> dict[str, Any]:
    from django.utils.translation import gettext

    return {"name": gettext("Monday")}


@pytest.fixture
def browser(site: None, settings: Any, epica_mail: Callable[..., None], tmp_path: Path) -> Client:
    """Return the browser of a person who may read mails, on a site with three previews."""
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
    user = User.objects.create_user("reader", is_staff=True)
    names = ["view_content", "view_emaillog"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(user)
    return client


def text_of(browser: Client, **query: str) -> str:
    page = browser.get(reverse("admin:epica_mail_emaillog_previews"), query)
    assert page.status_code == 200
    return page.content.decode()


FRAME = "admin:epica_mail_emaillog_preview"


def test_templates_with_a_sample_context_can_be_chosen(browser) -> None:
    text = text_of(browser)
    for name in ("greeting", "broken", "emails/welcome"):
        assert f'<option value="{name}">' in text
    assert "secret" not in text


@pytest.mark.parametrize(("language", "day"), [("en", "Monday"), ("tr", "Pazartesi")])
def test_a_preview_is_rendered_in_the_language_asked_for(browser, language, day) -> None:
    query = {"template": "greeting", "language": language}
    text = text_of(browser, **query)
    assert f"A greeting for {day}" in text
    assert f"Hi {day} &amp; co" in text
    frame = browser.get(reverse(FRAME), query)
    assert frame.content.decode() == f"<p>Hi {day}</p><script>alert(1)</script>"
    assert frame["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_the_packages_own_templates_can_be_previewed(browser) -> None:
    text = text_of(browser, template="emails/welcome", language="tr", width="phone")
    assert "epica-frame-phone" in text
    assert "template=emails%2Fwelcome&amp;language=tr&amp;images=0" in text
    frame = browser.get(reverse(FRAME), {"template": "emails/welcome", "language": "tr"})
    assert "Hesabınız" in frame.content.decode()


def test_a_template_that_cannot_be_rendered_says_why(browser) -> None:
    text = text_of(browser, template="broken")
    assert "TemplateSyntaxError" in text
    assert browser.get(reverse(FRAME), {"template": "broken"}).status_code == 404


@pytest.mark.parametrize("name", ["secret", "secret.txt", "../settings.py", ""])
def test_no_other_template_is_ever_rendered(browser, name) -> None:
    assert "not named" not in text_of(browser, template=name)
    assert browser.get(reverse(FRAME), {"template": name}).status_code == 404


def test_the_list_of_mails_leads_to_the_previews(browser, epica_mail) -> None:
    address = reverse("admin:epica_mail_emaillog_changelist")
    assert reverse("admin:epica_mail_emaillog_previews") in browser.get(address).content.decode()
    epica_mail(PREVIEWS={})
    assert "previews/" not in browser.get(address).content.decode()


@pytest.mark.parametrize("value", [[], {"x": 3}, {"": {}}, {3: {}}])
def test_what_is_no_preview_is_refused_with_the_setting(value) -> None:
    from django.core.exceptions import ImproperlyConfigured

    from django_epica_mail import conf

    with pytest.raises(ImproperlyConfigured, match="PREVIEWS"):
        conf.parse({"PREVIEWS": value})
