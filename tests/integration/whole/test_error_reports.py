"""Error reports and logs: they hold no content of mail, no address and no key.

Django's report of an exception goes to the site's administrators, or into a service of somebody
else's. Each public call is made to raise, deep inside, and the report is read.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mail
from django.test import RequestFactory
from django.views.debug import ExceptionReporter

from django_epica_mail import conf, outbox, tasks
from django_epica_mail.admin import content as admin_content
from django_epica_mail.messages import codec
from django_epica_mail.queueing import bulk
from django_epica_mail.queueing.rendering import render
from django_epica_mail.tracking.events import Kind, Visit

SECRET = "s3cret-token"


def whisper() -> str:
    """Return the secret, built so that no line of this file, which reports quote, shows it."""
    return SECRET.upper()


def notification() -> dict[str, str]:
    return {"title": whisper(), "body": whisper()}


class DeepError(Exception):
    """Raised where nobody expects it."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise DeepError


def message() -> EmailMultiAlternatives:
    mail = EmailMultiAlternatives(
        whisper(), whisper(), None, [f"{whisper()}@example.com"], headers={"X-A": whisper()}
    )
    mail.attach_alternative(whisper(), "text/html")
    return mail


def entry() -> dict[str, Any]:
    return {
        "subject": whisper(),
        "message": whisper(),
        "from_email": None,
        "recipient_list": [f"{whisper()}@example.com"],
    }


CALLS: dict[str, Callable[[], object]] = {
    "send_mail": lambda: send_mail(*list(entry().values())),
    "EmailMessage.send": lambda: message().send(),
    "enqueue": lambda: outbox.enqueue(message(), transport="smtp"),
    "enqueue_many": lambda: outbox.enqueue_many([message()], transport="smtp"),
    "send_email_async": lambda: tasks.send_email_async(**entry()),
    "send_templated_email_async": lambda: tasks.send_templated_email_async(
        whisper(), "emails/notification", notification(), None, [f"{whisper()}@example.com"]
    ),
    "send_bulk_templated_emails": lambda: tasks.send_bulk_templated_emails(
        whisper(), "emails/notification", [(f"{whisper()}@example.com", notification())]
    ),
    "bulk.submit": lambda: bulk.submit([entry()]),
    "render": lambda: render.render("emails/notification", notification()),
}


@pytest.fixture(autouse=True)
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DEBUG, settings.ROOT_URLCONF = False, ()
    for module, function in (
        (codec, "_message_id"), (bulk, "encode"), (render, "_unmarked"),
        (admin_content, "_decoded_header"),
    ):  # fmt: skip
        monkeypatch.setattr(module, function, fail)


def shown_of_our_frames(call: Callable[[], object]) -> str:
    """Make a call that raises; return the variables of the package's frames in the report."""
    try:
        call()
    except DeepError:
        reporter = ExceptionReporter(RequestFactory().get("/"), *sys.exc_info())
        frames = reporter.get_traceback_frames()
    shown = [it["vars"] for it in frames if "/django_epica_mail/" in str(it["filename"])]
    assert shown
    return str(shown)


@pytest.mark.parametrize("name", CALLS)
def test_the_report_of_a_public_call_that_raises_shows_nothing_of_the_mail(smtp, name) -> None:
    assert whisper() not in shown_of_our_frames(CALLS[name])


def test_the_report_of_an_admin_page_shows_nothing_of_the_mail(smtp, monkeypatch) -> None:
    monkeypatch.setattr(codec, "_message_id", lambda _: "")
    mail = outbox.enqueue(message(), transport="smtp")
    assert whisper() not in shown_of_our_frames(lambda: admin_content.read_content(mail))


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_a_variable_that_a_template_lacks_does_not_put_the_others_into_the_log(
    settings, caplog, monkeypatch, level
) -> None:
    loader = "django.template.loaders.locmem.Loader"
    templates = {"greeting.txt": "{{ person.missing }} {{ gone }}", "greeting_subject.txt": "S"}
    settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [(loader, templates)]},
        }
    ]
    caplog.set_level(level, "django.template")
    monkeypatch.undo()
    render.render("greeting", {"person": {"link": whisper()}, "link": whisper()})
    texts = [logging.Formatter().format(record) for record in caplog.records]
    assert not [text for text in texts if whisper() in text]
    assert level == "INFO" or any("gone" in text for text in texts)


def test_settings_and_what_carries_content_show_neither_keys_nor_content(monkeypatch) -> None:
    monkeypatch.undo()
    keys = {
        "SUPPRESSION_KEYS": [whisper()],
        "MONITORING_TOKEN": whisper() * 2,
        "RATES_STORAGE": {"URI": "redis://cache/1", "PASSWORD": whisper()},
        "TRANSPORTS": {"smtp": {"BACKEND": "x", "OPTIONS": {"password": whisper()}}},
    }
    rendered = render.Rendered(subject=whisper(), text=whisper(), html=whisper(), name="n")
    readable = admin_content.ReadableContent(headers=[], text=whisper(), html=whisper())
    visit = Visit(email_id=None, kind=Kind.CLICKED, url=whisper())  # type: ignore[arg-type]
    dumped = codec.dump(EmailMessage(whisper(), whisper(), None, [whisper()]))
    assert whisper() not in repr([conf.parse(keys), rendered, readable, visit, dumped])


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ({"URI": "redis://cache:6379/1", "PASSWORD": "p/w@"}, "redis://:p%2Fw%40@cache:6379/1"),
        ({"URI": "redis://me@cache/1", "PASSWORD": "pw"}, "redis://me:pw@cache/1"),
        ({"URI": "memory://"}, "memory://"),
    ],
)
def test_the_password_of_a_storage_stands_where_reports_hide_it(settings, given, uri) -> None:
    assert conf.parse({"RATES_STORAGE": given}).rates_storage == uri
    settings.EPICA_MAIL = {"RATES_STORAGE": given}
    reporter = ExceptionReporter(RequestFactory().get("/"), DeepError, DeepError(), None)
    assert given.get("PASSWORD", "p/w@") not in reporter.get_traceback_text()
    assert "memory://" not in uri or uri in reporter.get_traceback_text()
