"""Opens and clicks: from the mail that is sent to the events of its visits."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import django
import pytest
import time_machine
from django.core.mail import EmailMultiAlternatives
from django.db import DatabaseError
from django.test import Client
from django.urls import include, path

from devservers.provider import KEY, Provider
from django_epica_mail import clock, maintenance, outbox, signals
from django_epica_mail.delivery import claim
from django_epica_mail.models import DeliveryAttempt, EmailEvent, EmailLog
from django_epica_mail.tasks import send_email_async
from django_epica_mail.tracking import links

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:django-anymail has dropped official support for SendGrid"),
]
SITE = "https://shop.example.com"
HTML = (
    '<html><body><p>Ayşe,</p>\n<a class="b" href="https://example.com/?a=1&amp;b=2">x</a> '
    '<a href="mailto:a@example.com">y</a></body></html>'
)
PERSON = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.0"


@pytest.fixture
def site(settings: Any, epica_mail: Any) -> None:
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(BASE_URL=f"{SITE}/")


@pytest.fixture
def browser() -> Client:
    return Client(headers={"User-Agent": PERSON})


def queue(*to: str, **options: Any) -> EmailLog:
    message = EmailMultiAlternatives("S", "see https://example.com/", None, list(to) or ["a@e.com"])
    message.attach_alternative(HTML, "text/html")
    options.setdefault("track_opens", True)
    options.setdefault("track_clicks", True)
    return outbox.enqueue(message, **{"transport": "smtp", **options})


def parts(content: bytes) -> tuple[str, str]:
    """Return the text and the HTML of a mail, as a mail client shows them."""
    message = message_from_bytes(content, policy=policy.default)
    return tuple(
        message.get_body((kind,)).get_content().replace("\r\n", "\n")  # type: ignore[union-attr]
        for kind in ("plain", "html")
    )  # type: ignore[return-value]


def ours(text: str) -> tuple[str, str]:
    """Return the paths of our link and of our image."""
    (click,) = re.findall(rf'href="{SITE}(/mail/click/[^"]+)"', text)
    (image,) = re.findall(rf'<img src="{SITE}(/mail/open/[^"]+)" width="1"', text)
    return html.unescape(click), html.unescape(image)


@pytest.fixture
def sent(site: None, smtp: Any, deliver: Any, travel: Any) -> tuple[EmailLog, str, str]:
    """Send a tracked mail, a minute ago; return its row, and the paths of its link and image."""
    log = queue()
    assert deliver() == 1
    EmailLog.objects.update(finished_at=clock.now(-60))
    return (log, *ours(parts(smtp.accepted[0].content)[1]))


def test_only_the_html_of_a_mail_is_changed(site, smtp, deliver) -> None:
    queue()
    queue(track_opens=False, track_clicks=False)
    deliver()
    tracked, plain = (parts(mail.content) for mail in smtp.accepted)
    assert tracked[0] == plain[0]
    click, _ = ours(tracked[1])
    undone = tracked[1].replace(f"{SITE}{click}", "https://example.com/?a=1&amp;b=2")
    assert re.sub(r'<img src="[^"]+" width="1" height="1" alt="">', "", undone) == plain[1]


def test_by_default_nothing_is_tracked(site, smtp, deliver) -> None:
    log = queue(track_opens=None, track_clicks=None)
    deliver()
    assert log.additions == ""
    assert SITE not in parts(smtp.accepted[0].content)[1]


def test_a_click_leads_to_the_links_target_and_is_recorded(sent, browser) -> None:
    log, click, _ = sent
    response = browser.get(click)
    assert (response.status_code, response.headers["Location"]) == (
        302,
        "https://example.com/?a=1&b=2",
    )
    event = EmailEvent.objects.get()
    assert (event.kind, event.email_id, event.url) == (
        "clicked",
        log.pk,
        "https://example.com/?a=1&b=2",
    )
    assert (event.is_machine, event.ip, event.source) == (False, None, "epica_mail")
    assert event.user_agent == PERSON


def test_an_open_is_answered_with_an_image_and_recorded(sent, browser) -> None:
    log, _, image = sent
    response = browser.get(image)
    assert response.headers["Content-Type"] == "image/gif"
    assert response.content.startswith(b"GIF89a")
    assert "no-store" in response.headers["Cache-Control"]
    assert not response.cookies
    event = EmailEvent.objects.get()
    assert (event.kind, event.email_id, event.is_machine) == ("opened", log.pk, False)


@pytest.mark.parametrize("which", [1, 2], ids=["link", "image"])
def test_a_visit_costs_one_write(sent, browser, which, django_assert_num_queries) -> None:
    with django_assert_num_queries(3) as seen:
        browser.get(sent[which])
    statements = [query["sql"].split()[0] for query in seen.captured_queries]
    assert statements == ["SELECT", "SELECT", "INSERT"]


def test_a_flood_of_visits_writes_a_bounded_number_of_times(
    sent, browser, django_assert_max_num_queries
) -> None:
    _, click, _ = sent
    with (
        time_machine.travel("2026-12-01T12:00:00+00:00", tick=False) as time,
        django_assert_max_num_queries(1000) as seen,
    ):
        for number in range(120):
            browser.get(click, headers={"User-Agent": f"Attack {number % 2 and 'bot'} {number}"})
            time.shift(0.5)
    writes = [it for it in seen.captured_queries if not it["sql"].startswith("SELECT")]
    assert 0 < len(writes) <= 12, "of one link within a minute"


def test_automated_visits_are_recorded_as_such(sent, browser) -> None:
    _, click, image = sent
    browser.head(click)
    browser.get(image, headers={"User-Agent": "Mozilla/5.0"})
    browser.get(click, headers={"Sec-Purpose": "prefetch"})
    assert set(EmailEvent.objects.values_list("is_machine", flat=True)) == {True}


def test_a_visit_within_seconds_of_sending_is_automated(sent, browser) -> None:
    _, click, _ = sent
    EmailLog.objects.update(finished_at=clock.now(-1))
    browser.get(click)
    EmailLog.objects.update(finished_at=None, status="sending")
    browser.get(click)
    assert set(EmailEvent.objects.values_list("is_machine", flat=True)) == {True}


def test_a_visit_repeated_at_once_counts_once_and_later_again(sent, browser, monkeypatch) -> None:
    _, click, _ = sent
    with time_machine.travel("2026-12-01T12:00:00+00:00", tick=False) as time:
        for _ in range(5):
            browser.get(click)
        assert EmailEvent.objects.count() == 1
        time.shift(60)
        browser.get(click)
    assert EmailEvent.objects.count() == 2


def test_an_ip_address_is_kept_if_the_site_wants_it(sent, browser, epica_mail) -> None:
    epica_mail(STORE_IP=True)
    browser.get(sent[1])
    assert EmailEvent.objects.get().ip == "127.0.0.1"


def test_links_of_a_deleted_mail_still_work(sent, browser, travel) -> None:
    _, click, image = sent
    travel(days=31)
    assert maintenance.cleanup() == 1
    assert browser.get(click).status_code == 302
    assert browser.get(image).status_code == 200
    assert not EmailEvent.objects.exists()


def test_visitors_are_served_while_the_database_is_down(sent, browser, monkeypatch, caplog) -> None:
    def fail(*_: Any) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr("django_epica_mail.tracking.events.record_visit", fail)
    assert browser.get(sent[1]).status_code == 302
    assert browser.get(sent[2]).status_code == 200
    assert "could not be recorded" in caplog.text
    assert "example.com" not in caplog.text.split("Traceback")[0]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_other_methods_are_refused(sent, browser, method) -> None:
    assert getattr(browser, method)(sent[1]).status_code == 405


def test_a_mail_to_several_is_not_tracked(site, smtp, deliver) -> None:
    log = queue("a@example.com", "b@example.com")
    deliver()
    assert log.additions == ""
    assert SITE not in parts(smtp.accepted[0].content)[1]


def test_links_of_mail_whose_content_is_not_kept_are_untouched(site, smtp, deliver) -> None:
    log = queue(keep_content="until_sent")
    assert deliver() == 1
    assert log.additions == "opens"
    text = parts(smtp.accepted[0].content)[1]
    assert 'href="https://example.com/?a=1&amp;b=2"' in text
    assert f"{SITE}/mail/open/" in text


def test_a_rule_turns_tracking_on_and_a_call_off(site, smtp, epica_mail) -> None:
    epica_mail(ROUTES=[{"match": {"category": "news"}, "track_opens": True, "track_clicks": True}])
    undecided = {"track_opens": None, "track_clicks": None}
    assert queue(category="news", **undecided).additions == "opens clicks"
    assert queue(category="news", track_opens=False, track_clicks=None).additions == "clicks"
    assert queue(**undecided).additions == ""


def test_a_call_of_the_tasks_turns_tracking_on(site, smtp) -> None:
    result = send_email_async("S", "B", None, ["a@example.com"], HTML, track_opens=True)
    assert EmailLog.objects.get(pk=result.id).additions == "opens"


def test_an_unsubscribe_link_is_not_tracked(site, smtp, deliver) -> None:
    url = links.unsubscribe_url("a@example.com", "news")
    message = EmailMultiAlternatives("S", "B", None, ["a@example.com"])
    message.attach_alternative(f'<a href="{url}">leave</a>', "text/html")
    outbox.enqueue(message, transport="smtp", track_clicks=True, unsubscribe=True)
    deliver()
    assert f'<a href="{url}">leave</a>' in parts(smtp.accepted[0].content)[1]


def test_a_mail_of_unknown_outcome_is_sent_once_it_is_opened(site, smtp, browser) -> None:
    log = queue(on_unknown="hold")
    assert claim.claim("emails") is not None
    attempt = {"number": 1, "transport": "smtp", "worker": "x", "failure_kind": "worker_lost"}
    DeliveryAttempt.objects.create(email=log, created_at=clock.now(), **attempt)
    EmailLog.objects.update(status="unknown", failure_kind="worker_lost", lease_until=None)
    browser.get(links.open_url(log.pk).removeprefix(SITE))
    assert EmailLog.objects.get().status == "sent"


def test_a_visit_sends_the_signal(sent, browser, django_capture_on_commit_callbacks) -> None:
    received: list[str] = []

    def on_event(*, event: EmailEvent, **_: Any) -> None:
        received.append(f"{event.kind} {event.created_at.year > 2000}")

    signals.email_event.connect(on_event)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            browser.get(sent[1])
    finally:
        signals.email_event.disconnect(on_event)
    assert received == ["clicked True"]


def test_a_mail_is_sent_without_links_the_site_no_longer_serves(
    site, smtp, deliver, settings, caplog
) -> None:
    queue(unsubscribe=True)
    settings.ROOT_URLCONF = ()
    assert deliver() == 1
    assert b"List-Unsubscribe" not in smtp.accepted[0].content
    assert parts(smtp.accepted[0].content)[1].strip() == HTML
    assert "is sent without its links to the site" in caplog.text


@pytest.fixture
def provider(settings: Any, epica_mail: Any) -> Iterator[Provider]:
    with Provider() as server:
        options = {"api_key": KEY, "api_url": server.sendgrid_url}
        amazon = {
            "endpoint_url": server.amazon_url,
            "region_name": "eu-west-1",
            "aws_access_key_id": "id",
            "aws_secret_access_key": "secret",
        }
        backend = "anymail.backends.{}.EmailBackend"
        specs: dict[str, Any] = {
            "sendgrid": {"BACKEND": backend.format("sendgrid"), "OPTIONS": options},
            "amazon": {
                "BACKEND": backend.format("amazon_ses"),
                "OPTIONS": {"client_params": amazon},
            },
        }
        if django.VERSION >= (6, 1):
            settings.MAILERS = specs
        else:
            epica_mail(TRANSPORTS=specs)
        epica_mail(DEFAULT_TRANSPORT="sendgrid", REAL_TRANSPORTS_IN_TESTS=True)
        yield server


def test_a_provider_that_tracks_does_it_itself(provider, deliver, settings, epica_mail) -> None:
    queue(transport="sendgrid", track_clicks=False)
    deliver()
    (taken,) = provider.taken
    assert taken.request["tracking_settings"]["open_tracking"]["enable"] is True
    assert taken.request["tracking_settings"]["click_tracking"]["enable"] is False
    assert [part["value"] for part in taken.request["content"] if "html" in part["type"]] == [HTML]


def test_mail_by_a_provider_that_does_not_track_has_our_links(site, provider, deliver) -> None:
    result = send_email_async(
        "S", "B", "shop@example.com", ["a@example.com"], HTML,
        transport="amazon", track_opens=True, track_clicks=True,
    )  # fmt: skip
    deliver()
    assert EmailLog.objects.get(pk=result.id).status == "sent"
    wire = base64.b64decode(provider.taken[0].request["Content"]["Raw"]["Data"])
    assert ours(parts(wire)[1])


def test_a_link_followed_after_its_mail_was_forgotten_is_not_kept(sent, browser) -> None:
    log, click, _ = sent
    EmailLog.objects.all().forget_content([log.pk])
    assert browser.get(click).status_code == 302
    event = EmailEvent.objects.get()
    assert (event.kind, event.email_id, event.url) == ("clicked", log.pk, "")
