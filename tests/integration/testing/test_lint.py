"""The lint: each rule finds what it is for, and nothing in a good mail."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.outbox import enqueue
from django_epica_mail.testing import Finding, assert_mail_is_clean, drain_email_queue, lint_mail
from django_epica_mail.testing.lint import RULES, lint_templates

GOOD = (
    '<p>Hi <a href="https://www.python.org/orders/7?x=1&amp;y=2">Your order</a>'
    '<a href="mailto:help@www.python.org">Help</a> <a href="#top">Up</a>'
    '<img src="cid:logo" alt=""><img src="https://www.python.org/cup.png" alt="A cup"></p>'
)


def mail(html: str = GOOD, text: str = "Hi", subject: str = "Order") -> EmailMessage:
    message = EmailMultiAlternatives(subject, text, "shop@python.org", ["a@python.org"])
    if html:
        message.attach_alternative(html, "text/html")
    return message


def rules_of(message: EmailMessage, **options: Any) -> list[str]:
    return [it.rule for it in lint_mail(message, **options)]


def test_a_good_mail_has_no_finding() -> None:
    assert lint_mail(mail()) == []
    assert lint_mail(mail(html="", text="Plain: https://www.python.org/")) == []
    assert_mail_is_clean(mail())


@pytest.mark.parametrize(
    ("html", "rule"),
    [
        ('<a href="#">Go</a>', "link-empty"),
        ("<a href>Go</a>", "link-empty"),
        ('<a href=" ">Go</a>', "link-empty"),
        ('<a href="javascript:void(0)">Go</a>', "link-empty"),
        ('<a href="https://">Go</a>', "link-empty"),
        ('<a href="http://[::1/">Go</a>', "link-empty"),
        ('<a href="/orders/7">Go</a>', "link-relative"),
        ('<a href="orders/7">Go</a>', "link-relative"),
        ('<a href="//www.python.org/orders/7">Go</a>', "link-relative"),
        ('<img src="/static/cup.png" alt="Cup">', "link-relative"),
        ('<img alt="Cup">', "link-empty"),
        ('<a href="https://example.com/">Go</a>', "link-placeholder"),
        ('<a href="https://www.EXAMPLE.org./x">Go</a>', "link-placeholder"),
        ('<a href="http://localhost:8000/">Go</a>', "link-placeholder"),
        ('<a href="http://127.0.0.1/">Go</a>', "link-placeholder"),
        ('<a href="http://[::1]:8000/">Go</a>', "link-placeholder"),
        ('<a href="http://192.168.0.7/">Go</a>', "link-placeholder"),
        ('<a href="https://shop.test/">Go</a>', "link-placeholder"),
        ('<a href="https://intranet/">Go</a>', "link-placeholder"),
        ('<img src="https://www.python.org/cup.png">', "image-alt"),
        ("<p>Dear {{ name }}</p>", "left-over"),
        ('<a href="{{ url }}">Go</a>', "left-over"),
        ("<p>{% url 'home' %}</p>", "left-over"),
        ("<p>Dear %(name)s</p>", "left-over"),
    ],
)
def test_each_rule_finds_what_it_is_for(html: str, rule: str) -> None:
    assert rules_of(mail(html)) == [rule]
    assert rules_of(mail(html), ignore=[rule]) == []


def test_domains_that_merely_look_like_an_example_are_not_reserved() -> None:
    html = "".join(
        f'<a href="https://{host}/">Go</a>'
        for host in ("notexample.com", "example.com.tr", "8.8.8.8", "contest.io", "mytest.dev")
    )
    assert lint_mail(mail(html)) == []


def test_a_finding_names_the_words_the_value_and_the_remedy() -> None:
    (link,) = lint_mail(mail('<a href="/x"><b>Your</b>\n order</a>'))
    assert link == Finding(
        rule="link-relative",
        text="The link 'Your order' has the address '/x' without a scheme and a domain, which "
        "a mail client cannot complete.",
    )
    assert str(link).endswith("(link-relative)")


def test_html_without_text_and_a_mail_without_a_subject_are_found() -> None:
    html_only = EmailMessage("Order", GOOD, "shop@python.org", ["a@python.org"])
    html_only.content_subtype = "html"
    assert rules_of(html_only) == ["text-missing"]
    assert rules_of(mail(text=" \n")) == ["text-missing"]
    assert rules_of(mail(subject=" ")) == ["subject-missing"]
    assert rules_of(mail(html="", text="https://example.com/x")) == ["link-placeholder"]


def test_html_that_gmail_clips_is_found_by_its_bytes() -> None:
    limit = 102 * 1024
    assert lint_mail(mail("x" * limit)) == []
    (finding,) = lint_mail(mail("ş" * (limit // 2 + 1)))
    assert finding.rule == "size"
    assert f"{limit + 2} bytes" in finding.text


def test_bulk_mail_needs_both_headers_of_one_click() -> None:
    message = mail()
    assert rules_of(message) == []
    assert rules_of(message, bulk=True) == ["unsubscribe-missing"] * 2
    message.extra_headers = {"list-unsubscribe": "<https://www.python.org/u>"}
    (finding,) = lint_mail(message, bulk=True)
    assert "List-Unsubscribe-Post" in finding.text


def test_bulk_mail_of_the_queue_is_clean_as_delivered(
    epica_outbox, public_pages, epica_mail
) -> None:
    epica_mail(BASE_URL="https://www.python.org")
    enqueue(mail(), unsubscribe=True)
    (delivered,) = drain_email_queue()
    assert_mail_is_clean(delivered, bulk=True)


def test_the_assertion_lists_the_findings() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_mail_is_clean(mail('<a href="#">Go</a><img src="cid:1">'))
    lines = str(caught.value).splitlines()
    assert lines[0] == "The mail 'Order' is not clean:"
    assert [line.rpartition(" ")[2] for line in lines[1:]] == ["(link-empty)", "(image-alt)"]


def test_hosts_may_be_allowed() -> None:
    html = '<a href="http://localhost:8000/">a</a><a href="https://shop.example.com/">b</a>'
    assert rules_of(mail(html), hosts=["localhost", "shop.example.com"]) == []


def test_a_misspelt_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="'imgalt' is not a rule; the rules are: subject-missing"):
        lint_mail(mail(), ignore=["imgalt"])


def test_nothing_asks_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert lint_mail(mail(GOOD)) == []


@given(st.text(alphabet="<>/=\"'!-&# ahrefimgsrcltx:{%[", max_size=200))
def test_any_html_can_be_read(html: str) -> None:
    assert {it.rule for it in lint_mail(mail(html or "x"))} <= set(RULES)


@pytest.mark.parametrize("piece", ["<", "<a href=x>", "<!--", "<a ", "</", "&", "<![", "<a href='"])
def test_hostile_html_is_read_in_bounded_time(piece: str) -> None:
    began = time.process_time()
    found = lint_mail(mail(piece * 50_000))
    assert time.process_time() - began < 20
    assert len(found) <= 100
    assert all(len(it.text) < 600 for it in found)


@pytest.fixture
def templates(settings: Any, tmp_path: Path, epica_mail: Any) -> Path:
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    settings.LANGUAGES = [("en", "English"), ("tr", "Turkish")]
    epica_mail(
        PREVIEWS={
            "broken": {"number": 7},
            "order": {"url": "https://shop.example.com/7", "number": 7},
            "emails/notification": {"title": "Order", "body": "Thank you."},
        }
    )
    (tmp_path / "order_subject.txt").write_text("Order {{ number }}")
    (tmp_path / "order.txt").write_text("Order {{ number }}: {{ url }}")
    (tmp_path / "order.html").write_text('<a href="{{ url }}">{{ number }}</a>')
    return tmp_path


def test_templates_are_linted_in_every_language_and_a_sample_may_be_one(templates: Path) -> None:
    assert lint_templates(["order"]) == []
    (templates / "broken.html").write_text(
        "{% load i18n %}{% get_current_language as code %}"
        '{% if code == "tr" %}<a href="/tr/">{{ nobody }}</a>{% endif %}'
        '<a href="https://other.example.com/">Go</a>'
    )
    found = [(it.template, it.language, it.rule) for it in lint_templates()]
    assert found == [
        ("broken", "en", "link-placeholder"),
        ("broken", "tr", "variable-missing"),
        ("broken", "tr", "link-relative"),
        ("broken", "tr", "link-placeholder"),
    ]
    assert lint_templates(["emails/notification"]) == []
    assert {it.language for it in lint_templates(languages=["tr"])} == {"tr"}


def test_a_template_that_cannot_be_rendered_is_a_finding(templates: Path) -> None:
    (templates / "order.txt").write_text("{% nonsense %}")
    found = lint_templates(["order"], ["en"])
    assert [it.rule for it in found] == ["error"]
    assert "Invalid block tag on line 1: 'nonsense'" in found[0].text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((["nothing"],), "'nothing'"), ((None, ["de"]), "language must be a code")],
)
def test_what_cannot_be_linted_is_an_error(templates: Path, arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lint_templates(*arguments)


def test_without_previews_there_is_nothing_to_lint(epica_mail: Any) -> None:
    epica_mail(PREVIEWS={})
    with pytest.raises(ValueError, match="PREVIEWS'\\] names no template"):
        lint_templates()
