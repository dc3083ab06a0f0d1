"""Templates rendered to mail: which are found, their language, and HTML escaping."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.template import TemplateDoesNotExist
from django.utils import translation
from django.utils.safestring import SafeData
from django.utils.translation import gettext_lazy

from django_epica_mail.queueing.rendering.render import render

UNDEFINED = "undefined variable"
BACKENDS = "django.template.backends"


@pytest.fixture(autouse=True)
def site(settings: Any, tmp_path: Path) -> Path:
    """Return a folder for the site's own templates, which come before the package's."""
    folder = tmp_path / "templates"
    folder.mkdir()
    settings.TEMPLATES = [
        {
            "BACKEND": f"{BACKENDS}.django.DjangoTemplates",
            "DIRS": [folder],
            "APP_DIRS": True,
            "OPTIONS": {"string_if_invalid": UNDEFINED},
        }
    ]
    return folder


@pytest.fixture
def write(site: Path) -> Callable[..., None]:
    """Write templates, as in ``write({"x.txt": "Hello"})``."""

    def files(templates: dict[str, str], folder: Path = site) -> None:
        for name, content in templates.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    return files


@pytest.fixture
def shop_mail(write: Callable[..., None]) -> None:
    write({"x.html": "<p>HTML</p>", "x.txt": "Text", "x_subject.txt": "Subject"})


class TestNames:
    @pytest.mark.parametrize("name", ["x.html", "x"])
    def test_html_and_its_siblings_are_one_mail(self, shop_mail: None, name: str) -> None:
        mail = render(name)
        assert (mail.subject, mail.text, mail.html) == ("Subject", "Text", "<p>HTML</p>")
        assert mail.name == name

    def test_a_text_template_makes_a_mail_of_plain_text(self, shop_mail: None) -> None:
        mail = render("x.txt")
        assert (mail.subject, mail.text, mail.html) == ("Subject", "Text", None)

    def test_a_base_name_needs_only_the_text(self, write: Any) -> None:
        write({"only/text.txt": "Text"})
        mail = render("only/text")
        assert (mail.subject, mail.text, mail.html) == (None, "Text", None)

    def test_a_base_name_needs_only_the_html(self, write: Any) -> None:
        write({"only/v1.2.html": "<p>HTML</p>"})
        mail = render("only/v1.2")
        assert (mail.subject, mail.text, mail.html) == (None, "HTML\n", "<p>HTML</p>")

    def test_the_first_name_found_is_used(self, shop_mail: None, write: Any) -> None:
        write({"late.txt": "Late"})
        mail = render(["missing", "x.html", "late"])
        assert (mail.name, mail.text) == ("x.html", "Text")

    def test_an_html_name_needs_the_html(self, write: Any) -> None:
        write({"x.txt": "Text", "y.txt": "Other"})
        assert render(("x.html", "y")).name == "y"

    def test_the_error_names_every_file_looked_for(self, write: Any) -> None:
        write({"z_subject.txt": "A subject alone is no mail"})
        with pytest.raises(TemplateDoesNotExist) as caught:
            render(["x.html", "y.txt", "z"])
        assert str(caught.value) == "x.html, y.txt, z.html, z.txt"
        assert caught.value.chain, "Django's debug page lists where each was looked for"

    def test_an_empty_list_finds_nothing(self) -> None:
        with pytest.raises(TemplateDoesNotExist, match="No template names provided"):
            render([])

    @pytest.mark.parametrize("name", [None, 7, b"x.html", ["x.html", None], {"x.html"}])
    def test_an_invalid_name_is_refused(self, name: Any) -> None:
        with pytest.raises(TypeError, match="must be a template's name or a list of names; it is"):
            render(name)

    def test_one_engine_can_be_named(self, shop_mail: None, settings: Any) -> None:
        assert render("x", using="django").text == "Text"
        settings.TEMPLATES = [*settings.TEMPLATES, {"BACKEND": f"{BACKENDS}.dummy.TemplateStrings"}]
        with pytest.raises(TemplateDoesNotExist, match=r"x\.html, x\.txt"):
            render("x", using="dummy")


class TestContext:
    def test_html_is_escaped_and_text_is_not(self, write: Any) -> None:
        write(
            {
                "base.txt": "{% block body %}{% endblock %} {{ value }}",
                "part.txt": "[{{ value }}]",
                "x_subject.txt": "{{ value }}",
                "x.txt": '{% extends "base.txt" %}{% block body %}{{ value }} '
                '{% include "part.txt" %}{% endblock %}',
                "x.html": '<p>{{ value }} {% include "part.txt" %}</p>',
            }
        )
        mail = render("x", {"value": "Q&A <b>"})
        assert mail.subject == "Q&A <b>"
        assert mail.text == "Q&A <b> [Q&A <b>] Q&A <b>"
        assert mail.html == "<p>Q&amp;A &lt;b&gt; [Q&amp;A &lt;b&gt;]</p>"

    def test_rendered_parts_do_not_count_as_safe_html(self, shop_mail: None) -> None:
        mail = render("x")
        for part in (mail.subject, mail.text, mail.html):
            assert type(part) is str
            assert not isinstance(part, SafeData)

    def test_a_variable_set_by_one_template_is_unknown_to_others(self, write: Any) -> None:
        # A variable set by the text template would count as escaped in the HTML.
        write(
            {
                "x.txt": "{% load i18n %}{% blocktranslate asvar greeting %}Hi {{ name }}"
                "{% endblocktranslate %}{{ greeting }}",
                "x.html": "<p>{{ greeting }}</p>",
            }
        )
        context = {"name": "<b>"}
        mail = render("x", context)
        assert (mail.text, mail.html) == ("Hi <b>", f"<p>{UNDEFINED}</p>")
        assert context == {"name": "<b>"}

    def test_the_context_may_hold_any_object(self, write: Any) -> None:
        write({"x.txt": "{{ user.get_full_name }} {{ user.email }}"})
        user = User(first_name="Ayşe", last_name="Öz", email="ayse@example.com")
        assert render("x", {"user": user}).text == "Ayşe Öz ayse@example.com"

    @pytest.mark.parametrize("context", [["a"], "a", 7])
    def test_a_context_that_is_no_dict_is_refused(self, shop_mail: None, context: Any) -> None:
        with pytest.raises(TypeError, match="context must be a dict"):
            render("x", context)

    def test_the_subject_is_one_line(self, write: Any) -> None:
        write({"x.txt": "", "x_subject.txt": "\n  Your order\n  {{ order }}\r\n\n"})
        mail = render("x", {"order": "7\nBcc: everyone@example.com"})
        assert mail.subject == "Your order 7 Bcc: everyone@example.com"

    def test_the_layout_of_the_text_is_kept(self, write: Any) -> None:
        write({"x.txt": "\n  indented\n\n\n\nlast  \n\n"})
        assert render("x").text == "\n  indented\n\n\n\nlast  \n\n"


class TestLanguage:
    @pytest.fixture(autouse=True)
    def bilingual(self, write: Any) -> None:
        write({"x.txt": '{% load i18n %}{% translate "Monday" %} {{ day }}'})

    def test_the_current_language_is_used_by_default(self) -> None:
        day = {"day": gettext_lazy("Tuesday")}
        assert render("x", day).text == "Monday Tuesday"
        with translation.override("tr"):
            assert render("x", day).text == "Pazartesi Salı"

    def test_a_language_applies_to_one_mail(self) -> None:
        with translation.override("de"):
            assert render("x", {"day": gettext_lazy("Tuesday")}, language="tr").text == (
                "Pazartesi Salı"
            )
            assert translation.get_language() == "de"

    def test_an_untranslated_variant_falls_back_to_its_language(self) -> None:
        assert render("x", {"day": ""}, language="tr-cy").text == "Pazartesi "

    @pytest.mark.parametrize("language", ["xx", "", "tr" * 500, 7])
    def test_an_unknown_language_is_refused(self, language: Any) -> None:
        with pytest.raises(ValueError, match=r"a code from LANGUAGES .* it is") as no:
            render("x", language=language)
        assert repr(language) in str(no.value)

    def test_a_language_the_site_does_not_offer_is_refused(self, settings: Any) -> None:
        settings.LANGUAGES = [("en", "English"), ("tr", "Türkçe")]
        assert render("x", {"day": ""}, language="tr").text == "Pazartesi "
        with pytest.raises(ValueError, match="it is 'de'"):
            render("x", language="de")


class TestOtherEngines:
    def test_jinja2_escapes_html_and_not_text(
        self, settings: Any, write: Any, tmp_path: Path
    ) -> None:
        folder = tmp_path / "jinja2"
        settings.TEMPLATES = [{"BACKEND": f"{BACKENDS}.jinja2.Jinja2", "DIRS": [folder]}]
        write(
            {
                "base.txt": "{% block body %}{% endblock %}",
                "x.txt": '{% extends "base.txt" %}{% block body %}{{ value }}{% endblock %}',
                "x_subject.txt": "{{ value }}",
                "x.html": "<p>{{ value }}</p>",
            },
            folder,
        )
        mail = render("x.html", {"value": "Q&A"})
        assert (mail.subject, mail.text, mail.html) == ("Q&A", "Q&A", "<p>Q&amp;A</p>")
        assert {type(part) for part in (mail.subject, mail.text, mail.html)} == {str}

    def test_an_unknown_engine_escapes_as_it_always_does(
        self, settings: Any, shop_mail: None, write: Any, site: Path
    ) -> None:
        write({"x.txt": "$value"})
        settings.TEMPLATES = [{"BACKEND": f"{BACKENDS}.dummy.TemplateStrings", "DIRS": [site]}]
        mail = render("x", {"value": "Q&A"})
        assert (mail.subject, mail.text, mail.html) == ("Subject", "Q&amp;A", "<p>HTML</p>")


class TestTextDerivedFromHtml:
    def test_links_keep_their_urls(self, write: Any) -> None:
        write(
            {
                "x.html": '<p>See <a href="https://example.com/?a=1&amp;b=2">your <b>order</b></a>.'
                '</p><p><a href="https://example.com/">https://example.com</a>, '
                '<a href="mailto:shop@example.com">shop@example.com</a>, <a href="#top">top</a>, '
                '<a href="https://example.com/logo"><img src="cid:logo" alt="Shop"></a></p>'
            }
        )
        assert render("x").text == (
            "See your order <https://example.com/?a=1&b=2>.\n\n"
            "https://example.com, shop@example.com, top, [Shop] <https://example.com/logo>\n"
        )

    def test_invisible_content_is_left_out(self, write: Any) -> None:
        write(
            {
                "x.html": "<html><head><title>Title</title><style>.pre {display: none} "
                "p {color: red}</style></head><body><div class='pre'>Preheader</div>"
                "<!--[if mso]><p>Outlook</p><![endif]--><p>Şöyle &lt;b&gt; &amp; böyle</p></body>"
                "</html>"
            }
        )
        assert render("x").text == "Şöyle <b> & böyle\n"

    def test_layout_tables_become_lines_and_data_tables_columns(self, write: Any) -> None:
        write(
            {
                "x.html": """<table width="100%"><tr><td align="center"><table><tr>
                <td style="text-align: center"><h1>Order</h1><ul><li>Fast</li><li>Safe</li></ul>
                <table><tr><th>Item</th><th>Price</th></tr><tr><td>Black tea</td><td>10</td></tr>
                </table><p>A long line that is never broken, so that whatever is in it, addresses
                above all, stays whole.</p><br><br><br><p>End</p></td></tr></table></td></tr>
                </table>"""
            }
        )
        assert render("x").text == dedent("""\
            Order

              * Fast
              * Safe
            Item       Price
            Black tea  10

            A long line that is never broken, so that whatever is in it, addresses above all, \
stays whole.

            End
            """)

    def test_a_long_line_among_many_is_not_padded_in_columns(self, write: Any) -> None:
        """Each line of a cell would be padded to the longest: 56 KB took 500 MB."""
        write({"x.html": "<table><tr><td>{{ said|linebreaksbr }}</td><td>End</td></tr></table>"})
        said = "a\n" * 3000 + "x" * 30_000
        assert render("x", {"said": said}).text == f"{said}\nEnd\n"

    @pytest.mark.parametrize("centred", ['align="center"', 'style="text-align: center"'])
    @pytest.mark.parametrize("tag", ["table", "tr", "td"])
    def test_centred_text_starts_its_line(self, write: Any, tag: str, centred: str) -> None:
        html = "<table><tr><td><p>Shop</p><p>A longer line</p></td></tr></table>"
        write({"x.html": html.replace(f"<{tag}>", f"<{tag} {centred}>")})
        assert render("x").text == "Shop\n\nA longer line\n"

    @pytest.mark.parametrize("html", ["", " \n", "<!-- nothing -->"])
    def test_empty_html_has_no_text(self, write: Any, html: str) -> None:
        write({"x.html": html})
        assert render("x").text == ""

    def test_a_declared_encoding_is_ignored(self, write: Any) -> None:
        write({"x.html": '<?xml version="1.0" encoding="iso-8859-1"?><html><p>ığüşöç</p></html>'})
        assert render("x").text == "ığüşöç\n"

    def test_deep_nesting_loses_no_text(self, write: Any) -> None:
        write({"x.html": "<div>" * 300 + "deep" + "</div>" * 300})
        assert render("x").text == "deep\n"

    @pytest.mark.parametrize("library", ["inscriptis", "lxml.html"])
    def test_without_the_extra_the_error_names_the_remedy(
        self, write: Any, monkeypatch: pytest.MonkeyPatch, library: str
    ) -> None:
        write({"x.html": "<p>HTML</p>"})
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImproperlyConfigured) as caught:
            render("x.html")
        assert "'x.html' has no plain-text template" in str(caught.value)
        assert 'pip install "django-epica-mail[templates]", or write x.txt' in str(caught.value)

    def test_without_the_extra_a_text_template_is_enough(
        self, shop_mail: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "inscriptis", None)
        assert render("x.html").text == "Text"


STYLED = (
    "<!DOCTYPE html><html><head><style>p { color: red } a:hover { color: blue } "
    "@media (max-width: 600px) { p { color: green !important } }</style></head>"
    "<body><p>A &amp; B</p></body></html>"
)


class TestInlinedCss:
    def test_rules_are_copied_into_elements_of_the_html_only(self, write: Any) -> None:
        write({"x.html": STYLED, "x.txt": "<style>p { color: red }</style>"})
        mail = render("x")
        assert mail.html is not None
        assert mail.html == STYLED.replace("<p>", '<p style="color: red;">')
        assert mail.text == "<style>p { color: red }</style>"

    def test_html_without_rules_is_left_alone(self, write: Any) -> None:
        write({"x.html": "<P>Part<BR>of a page"})
        assert render("x").html == "<P>Part<BR>of a page"

    def test_without_the_extra_the_rules_are_not_copied(
        self, write: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write({"x.html": STYLED})
        monkeypatch.setitem(sys.modules, "css_inline", None)
        assert render("x").html == STYLED

    def test_no_stylesheet_is_fetched(self, write: Any, site: Path) -> None:
        write({"local.css": "p { color: green }"})
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            links = (
                f'<link rel="stylesheet" href="http://127.0.0.1:{server.getsockname()[1]}/x.css">'
                f'<link rel="stylesheet" href="file://{site}/local.css">'
            )
            write({"x.html": STYLED.replace("<style>", f"{links}<style>")})
            html = render("x").html
            with pytest.raises(BlockingIOError):
                server.accept()
        assert html is not None
        assert links in html
        assert '<p style="color: red;">' in html


WELCOME = "emails/welcome.html"
PASSWORD_RESET = "emails/password_reset.html"
NOTIFICATION = "emails/notification.html"
AYSE = User(username="ayse", first_name="Ayşe <3")
SITE = {"site_name": "Tea & Co"}
ACTION = {"action_url": "https://example.com/?a=1&b=2"}
RESET = {"user": AYSE, "reset_url": "https://example.com/reset/MQ/c1-2/"}
NEWS = {"title": "Q&A is open", "body": "Ask <us>.\n\nToday."}


def assert_complete(name: str, context: dict[str, Any], language: str) -> tuple[str, str, str]:
    mail = render(name, context, language=language)
    assert mail.subject
    assert mail.html
    for part in (mail.subject, mail.text, mail.html):
        assert UNDEFINED not in part
    return mail.subject, mail.text, mail.html


class TestShippedTemplates:
    @pytest.mark.parametrize(
        ("language", "subject", "text"),
        [
            (
                "en",
                "Welcome to Tea & Co",
                "Hello Ayşe <3,\n\n"
                "Your account at Tea & Co is ready. We are glad to have you with us.\n\n"
                "Get started:\nhttps://example.com/?a=1&b=2\n\n"
                "Tea & Co\n",
            ),
            (
                "tr",
                "Tea & Co sitesine hoş geldiniz",
                "Merhaba Ayşe <3,\n\n"
                "Tea & Co hesabınız hazır. Aramıza katıldığınız için mutluyuz.\n\n"
                "Hemen başlayın:\nhttps://example.com/?a=1&b=2\n\n"
                "Tea & Co\n",
            ),
        ],
    )
    def test_welcome(self, language: str, subject: str, text: str) -> None:
        got = assert_complete(WELCOME, {"user": AYSE, **SITE, **ACTION}, language)
        assert got[:2] == (subject, text)
        assert 'href="https://example.com/?a=1&amp;b=2"' in got[2]
        assert "Ayşe &lt;3" in got[2]
        assert "Tea &amp; Co" in got[2]
        assert "&amp;amp;" not in got[2]

    @pytest.mark.parametrize(
        ("language", "subject", "text"),
        [
            (
                "en",
                "Welcome",
                "Hello,\n\nYour account is ready. We are glad to have you with us.\n",
            ),
            (
                "tr",
                "Hoş geldiniz",
                "Merhaba,\n\nHesabınız hazır. Aramıza katıldığınız için mutluyuz.\n",
            ),
        ],
    )
    @pytest.mark.parametrize("context", [{}, {"user": None}, {"user": {"email": "a@example.com"}}])
    def test_welcome_without_a_name(
        self, context: dict[str, Any], language: str, subject: str, text: str
    ) -> None:
        assert assert_complete(WELCOME, context, language)[:2] == (subject, text)

    @pytest.mark.parametrize(
        ("language", "subject", "text", "button", "hint"),
        [
            (
                "en",
                "Reset your password at Tea & Co",
                "Hello Ayşe <3,\n\n"
                "We received a request to reset the password of your account at Tea & Co. "
                "To choose a new password, open this link:\n\n"
                "https://example.com/reset/MQ/c1-2/\n\n"
                "This link is valid for 1 hour.\n\n"
                "If you did not ask for this, you can ignore this e-mail; "
                "your password will stay the same.\n\n"
                "Tea & Co\n",
                ">Choose a new password</a>",
                "If the button does not work",
            ),
            (
                "tr",
                "Tea & Co parolanızı sıfırlayın",
                "Merhaba Ayşe <3,\n\n"
                "Tea & Co hesabınızın parolasını sıfırlamak için bir talep aldık. "
                "Yeni bir parola belirlemek için bu bağlantıyı açın:\n\n"
                "https://example.com/reset/MQ/c1-2/\n\n"
                "Bu bağlantı 1 saat boyunca geçerlidir.\n\n"
                "Bu talebi siz yapmadıysanız bu e-postayı dikkate almayın; "
                "parolanız değişmeyecektir.\n\n"
                "Tea & Co\n",
                ">Yeni parola belirleyin</a>",
                "Düğme çalışmazsa",
            ),
        ],
    )
    def test_password_reset(
        self, language: str, subject: str, text: str, button: str, hint: str
    ) -> None:
        context = {**RESET, **SITE, "expires_hours": 1}
        got = assert_complete(PASSWORD_RESET, context, language)
        assert got[:2] == (subject, text)
        assert button in got[2]
        assert hint in got[2]
        assert got[2].count('href="https://example.com/reset/MQ/c1-2/"') == 2

    @pytest.mark.parametrize(
        ("language", "subject", "text"),
        [
            (
                "en",
                "Reset your password",
                "Hello Ayşe <3,\n\n"
                "We received a request to reset the password of your account. "
                "To choose a new password, open this link:\n\n"
                "https://example.com/reset/MQ/c1-2/\n\n"
                "If you did not ask for this, you can ignore this e-mail; "
                "your password will stay the same.\n",
            ),
            (
                "tr",
                "Parolanızı sıfırlayın",
                "Merhaba Ayşe <3,\n\n"
                "Hesabınızın parolasını sıfırlamak için bir talep aldık. "
                "Yeni bir parola belirlemek için bu bağlantıyı açın:\n\n"
                "https://example.com/reset/MQ/c1-2/\n\n"
                "Bu talebi siz yapmadıysanız bu e-postayı dikkate almayın; "
                "parolanız değişmeyecektir.\n",
            ),
        ],
    )
    def test_password_reset_with_the_least_context(
        self, language: str, subject: str, text: str
    ) -> None:
        assert assert_complete(PASSWORD_RESET, RESET, language)[:2] == (subject, text)

    @pytest.mark.parametrize(
        ("language", "validity"),
        [
            ("en", "This link is valid for: 24 saat."),
            ("tr", "Bağlantının geçerlilik süresi: 24 saat."),
        ],
    )
    def test_password_reset_takes_the_names_of_its_documented_call(
        self, language: str, validity: str
    ) -> None:
        link = "https://example.com/reset/MQ/c1-2/"
        context = {"user": AYSE, "reset_link": link, "expires_in": "24 saat"}
        _, text, html = assert_complete(PASSWORD_RESET, context, language)
        assert link in text
        assert html is not None
        assert html.count(f'href="{link}"') == 2
        assert validity in text
        assert validity in html

    @pytest.mark.parametrize("debug", [True, False])
    @pytest.mark.parametrize(
        ("template", "context", "missing"),
        [
            (PASSWORD_RESET, {"user": AYSE, "url": "x"}, "reset_url or reset_link"),
            ("emails/password_reset", {"reset_url": ""}, "reset_url or reset_link"),
            (["emails/missing", "emails/password_reset.txt"], {}, "reset_url or reset_link"),
            (NOTIFICATION, {"title": "Q&A"}, "body"),
        ],
    )
    def test_a_missing_variable_is_refused_in_the_call(
        self, settings: Any, debug: bool, template: Any, context: Any, missing: str
    ) -> None:
        settings.DEBUG = debug
        with pytest.raises(ValueError, match=f"needs the variable {missing} in its context"):
            render(template, context)

    @pytest.mark.parametrize(
        ("language", "validity"),
        [
            ("en", "This link is valid for 72 hours."),
            ("tr", "Bu bağlantı 72 saat boyunca geçerlidir."),
        ],
    )
    def test_several_hours_are_in_the_plural(self, language: str, validity: str) -> None:
        _, text, html = assert_complete(PASSWORD_RESET, {**RESET, "expires_hours": 72}, language)
        assert validity in text
        assert validity in html

    @pytest.mark.parametrize(
        ("language", "label"), [("en", "View details"), ("tr", "Ayrıntıları görüntüleyin")]
    )
    def test_notification(self, language: str, label: str) -> None:
        subject, text, html = assert_complete(NOTIFICATION, {**NEWS, **SITE, **ACTION}, language)
        assert subject == "Q&A is open"
        assert text == (
            "Q&A is open\n\nAsk <us>.\n\nToday.\n\n"
            f"{label}:\nhttps://example.com/?a=1&b=2\n\nTea & Co\n"
        )
        assert "Ask &lt;us&gt;.</p>" in html
        assert f">{label}</a>" in html

    def test_notification_with_its_own_label(self) -> None:
        context = {**NEWS, **ACTION, "action_label": "Go > there"}
        _, text, html = assert_complete(NOTIFICATION, context, "tr")
        assert "\n\nGo > there:\nhttps://example.com/" in text
        assert ">Go &gt; there</a>" in html
        assert "Ayrıntıları" not in text + html

    def test_notification_without_an_action(self) -> None:
        _, text, html = assert_complete(NOTIFICATION, NEWS, "en")
        assert text == "Q&A is open\n\nAsk <us>.\n\nToday.\n"
        assert "<a " not in html

    @pytest.mark.parametrize(
        ("language", "attributes"),
        [
            ("en", 'lang="en" dir="ltr"'),
            ("tr", 'lang="tr" dir="ltr"'),
            ("ar", 'lang="ar" dir="rtl"'),
        ],
    )
    def test_the_page_declares_its_language(self, language: str, attributes: str) -> None:
        html = assert_complete(NOTIFICATION, NEWS, language)[2]
        assert f"<html {attributes}" in html
        assert f'<div role="article" aria-roledescription="email" {attributes}>' in html

    def test_the_page_declares_a_language_without_translation(self) -> None:
        with translation.override(None):
            html = render(NOTIFICATION, NEWS).html
        assert html is not None
        assert '<html lang="en" dir="ltr"' in html

    @pytest.mark.parametrize("name", [WELCOME, PASSWORD_RESET, NOTIFICATION])
    @pytest.mark.parametrize("inlined", [True, False])
    def test_the_page_fits_phones_and_dark_screens(
        self, monkeypatch: pytest.MonkeyPatch, name: str, inlined: bool
    ) -> None:
        if not inlined:
            monkeypatch.setitem(sys.modules, "css_inline", None)
        html = assert_complete(name, {**RESET, **NEWS, **ACTION}, "en")[2]
        assert '<meta name="color-scheme" content="light dark">' in html
        assert "@media (prefers-color-scheme: dark)" in html
        assert "@media (max-width: 600px)" in html
        assert ("max-width: 600px;margin: 0 auto" in html) is inlined

    def test_a_site_extends_the_base_through_blocks(self, write: Any) -> None:
        blocks = ["style", "preheader", "header", "heading", "content", "action", "footer"]
        body = "".join(f"{{% block {name} %}}/* my {name} */{{% endblock %}}" for name in blocks)
        write({"order.html": f'{{% extends "emails/base.html" %}}{body}'})
        write(
            {
                "order.txt": '{% extends "emails/base.txt" %}{% block content %}Text{% endblock %}'
                "{% block footer %}, footer{% endblock %}"
            }
        )
        mail = render("order", SITE)
        assert mail.html is not None
        assert all(f"/* my {name} */" in mail.html for name in blocks)
        assert mail.text == "Text, footer\n"

    def test_a_site_recolours_the_button(self, write: Any) -> None:
        write(
            {
                WELCOME: '{% extends "emails/base.html" %}'
                "{% block style %}.button-cell { background-color: #c00 }{% endblock %}"
                '{% block action %}{% include "emails/base_button.html" with url=action_url '
                'label="Go" %}{% endblock %}'
            }
        )
        mail = render(WELCOME, ACTION)
        assert mail.html is not None
        assert re.search(r'class="button-cell"[^>]* style="[^"]*background-color: #c00', mail.html)

    def test_a_site_overrides_one_file_and_keeps_the_others(self, write: Any) -> None:
        write({"emails/welcome_subject.txt": "Hi"})
        mail = render(WELCOME, {"user": AYSE})
        assert mail.subject == "Hi"
        assert mail.text.startswith("Hello Ayşe <3,\n")
