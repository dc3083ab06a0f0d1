"""Test the public API on real servers and a real worker."""

from __future__ import annotations

import json
from email import message_from_bytes, policy
from typing import Any

import pytest
from celery.result import AsyncResult
from django.contrib.auth.models import User
from django.core.mail import EmailMessage
from django.db import transaction

from devservers.process import wait_until
from devservers.redis import RedisServer
from devservers.smtp_faults import delay, refuse
from django_epica_mail import outbox
from django_epica_mail.exceptions import DeliveryFailed
from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import (
    send_bulk_emails_task,
    send_email_async,
    send_templated_email_async,
)
from tests.acceptance.conftest import OpenSite
from tests.acceptance.inside import in_processes
from tests.acceptance.site import Site

# -- run in the site


def send_and_wait(to: str) -> dict[str, Any]:
    result = send_email_async(
        subject="Sipariş onayı",
        message="Siparişiniz alındı.",
        from_email=None,
        recipient_list=[to],
        html_message="<p>Siparişiniz alındı.</p>",
    )
    try:
        value = result.get(timeout=20)
    except DeliveryFailed as error:
        value = {"kind": error.kind, "code": error.code}
    return {"id": result.id, "status": result.status, "value": value}


def what_celery_knows(result_id: str) -> dict[str, Any]:
    """Ask the result backend, knowing only the id."""
    result = AsyncResult(result_id)
    value = result.result
    return {
        "status": result.status,
        "value": str(value) if isinstance(value, Exception) else value,
        "name": result.name,
        "args": result.args,
    }


def send_templated() -> str:
    user = User(username="Ayşe", email="ayse@example.com")
    result = send_templated_email_async(
        subject="Parola sıfırlama",
        template_name="emails/password_reset.html",
        context={"user": user, "reset_url": "https://example.com/reset/x/?a=1&b=2"},
        from_email=None,
        recipient_list=[user.email],
        language="tr",
    )
    return str(result.get(timeout=20)["message_id"])


def newsletter_entry(name: str) -> dict[str, Any]:
    return {
        "subject": f"Bülten {name}",
        "message": f"Merhaba {name}",
        "from_email": None,
        "recipient_list": [f"{name}@example.com"],
    }


def send_bulk_without_worker() -> None:
    send_bulk_emails_task.delay([newsletter_entry("secret")] * 100)


def send_bulk(count: int) -> dict[str, Any]:
    emails = [newsletter_entry(str(number)) for number in range(count)]
    emails[7] = {"subject": "No recipient", "message": "x", "recipient_list": []}
    with transaction.atomic():
        result = send_bulk_emails_task.delay(emails)
    before = result.status
    report = result.get(timeout=60)
    return {"before": before, "after": result.status, "report": report}


def send_bulk_by_name() -> str:
    """Call the task by its name, so that the broker carries the entries."""
    from celery import current_app

    entry = newsletter_entry("a")
    sent = current_app.send_task(
        "django_epica_mail.tasks.send_bulk_emails_task", args=[[entry]], queue="bulk_emails"
    )
    return str(sent.id)


def send_with_one_key(count: int) -> list[str]:
    """Send the same mail from several processes at once, each in its own transaction."""

    def send(number: int) -> None:
        with transaction.atomic():
            EmailLog.objects.count()
            result = send_email_async("S", "M", None, ["a@example.com"], idempotency_key="order-7")
            # The transaction is still usable, and the row exists.
            assert EmailLog.objects.get(pk=result.id).idempotency_key == "order-7"

    in_processes(count, send)
    return [str(pk) for pk in EmailLog.objects.values_list("pk", flat=True)]


def send_urgent() -> str:
    return send_email_async("Urgent", "M", None, ["urgent@example.com"], priority="urgent").id


def send_newsletter(count: int, queue: str) -> None:
    outbox.enqueue_many(
        (EmailMessage(f"Bulk {n}", "M", None, [f"{n}@example.com"]) for n in range(count)),
        queue=queue,
    )


# -- tests


def open_with_results(open_site: OpenSite, kind: str = "sqlite", **keys: Any) -> Site:
    """Open a site that uses its Redis as result backend."""
    site = open_site(kind, **keys)
    site.env["SHOP_RESULT_BACKEND"] = site.redis.url()
    return site


def test_a_call_returns_a_handle_with_the_outcome(open_site) -> None:
    site = open_with_results(open_site, "postgresql")
    site.smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", recipient=_is_never))
    site.start_worker()
    sent = site.call(send_and_wait, "to@example.com")
    (arrived,) = site.smtp.accepted
    assert sent["status"] == "SUCCESS"
    assert sent["value"] == {"status": "sent", "message_id": arrived.message_id}
    assert arrived.message_id.startswith(f"<{sent['id']}@")
    refused = site.call(send_and_wait, "never@example.com")
    assert (refused["status"], refused["value"]) == (
        "FAILURE",
        {"kind": "permanent", "code": 550},
    )
    wait_until(
        lambda: site.call(what_celery_knows, refused["id"])["status"] == "FAILURE",
        timeout=15,
        what="the result backend to have the outcome",
    )
    assert site.call(what_celery_knows, sent["id"]) == {
        "status": "SUCCESS",
        "value": sent["value"],
        "name": "django_epica_mail.tasks.send_email_task",
        "args": [sent["id"]],
    }
    failure = site.call(what_celery_knows, refused["id"])
    assert "550" in failure["value"]
    assert "@" not in failure["value"]


def test_a_failing_result_backend_does_not_stop_mail(open_site, tmp_path) -> None:
    site = open_site()
    (tmp_path / "results").mkdir()
    with RedisServer(tmp_path / "results") as results:
        site.env["SHOP_RESULT_BACKEND"] = results.url()
        site.start_worker()
        results.pause()
        first = site.call(send_and_wait, "one@example.com")
        assert first["status"] == "SUCCESS"
        results.resume()
        results.kill()
        assert site.call(send_and_wait, "two@example.com")["status"] == "SUCCESS"
    assert len(site.smtp.accepted) == 2


def test_the_sweep_stores_results_that_the_backend_missed(open_site, tmp_path) -> None:
    site = open_site(RING_PAUSE=1)
    (tmp_path / "results").mkdir()
    with RedisServer(tmp_path / "results") as results:
        site.env["SHOP_RESULT_BACKEND"] = results.url()
        site.start_worker()
        results.pause()
        sent = site.call(send_and_wait, "one@example.com")
        results.resume()
        site.start_beat()
        wait_until(
            lambda: site.call(what_celery_knows, sent["id"])["status"] == "SUCCESS",
            timeout=20,
            what="the result backend to have the outcome",
        )


def test_a_template_is_sent_in_the_requested_language(open_site) -> None:
    site = open_site()
    site.start_worker()
    message_id = site.call(send_templated)
    (arrived,) = site.smtp.accepted
    assert arrived.message_id == message_id
    message = message_from_bytes(arrived.content, policy=policy.default)
    assert message["Subject"] == "Parola sıfırlama"
    text, html = (part.get_content() for part in message.iter_parts())
    assert "https://example.com/reset/x/?a=1&b=2" in text
    assert 'lang="tr"' in html
    assert "Ayşe" in text
    assert "Ayşe" in html


def test_a_bulk_call_sends_one_mail_per_entry(open_site) -> None:
    site = open_with_results(open_site, "postgresql")
    site.start_workers(2)
    outcome = site.call(send_bulk, 2000)
    assert outcome["before"] in ("PENDING", "PROGRESS")
    assert outcome["after"] == "SUCCESS"
    assert outcome["report"]["accepted"] == len(set(outcome["report"]["ids"])) == 1999
    assert outcome["report"]["refused"] == [
        {"index": 7, "error": "ValueError", "rule": "draft._draft"}
    ]
    site.wait_for(sent=1999)
    site.require_each_arrived_once(1999)


def test_a_bulk_call_that_somebody_writes_into_the_broker_sends_nothing(open_site) -> None:
    site = open_with_results(open_site)
    site.start_worker()
    task_id = site.call(send_bulk_by_name)
    site.call(send_bulk_without_worker)
    site.wait_for(sent=100)
    assert site.call(what_celery_knows, task_id)["status"] != "SUCCESS"
    assert not [it for it in site.smtp.accepted if it.recipients == ("a@example.com",)]


def test_simultaneous_calls_with_one_key_send_one_mail(open_site) -> None:
    site = open_site("postgresql")
    assert len(site.call(send_with_one_key, 8)) == 1
    site.start_worker()
    site.sweep()
    site.wait_for(sent=1)
    assert len(site.smtp.accepted) == 1


both_ways = pytest.mark.parametrize("apart", [False, True], ids=["one worker", "one per queue"])


@both_ways
def test_urgent_mail_overtakes_ten_thousand_mails(open_site: OpenSite, apart: bool) -> None:
    require_urgent_mail_to_overtake(open_site("postgresql"), apart=apart)


def require_urgent_mail_to_overtake(site: Site, *, apart: bool) -> None:
    """Fail unless an urgent mail overtakes 10,000 mails that wait for a slow server.

    One worker serves all queues or, with ``apart``, one worker serves each queue.
    """
    site.smtp.inject(delay(0.02))
    if apart:
        site.start_worker(queues=("bulk_emails",), concurrency=2)
        site.start_worker(queues=("celery", "emails"), concurrency=2)
    else:
        site.start_worker(concurrency=2)
    site.call(send_newsletter, 10_000, "bulk_emails" if apart else "emails")
    wait_until(lambda: len(site.smtp.accepted) > 50, timeout=60, what="bulk mail to arrive")
    urgent = site.call(send_urgent)
    wait_until(
        lambda: any(mail.message_id.startswith(f"<{urgent}@") for mail in site.smtp.accepted),
        timeout=15,
        what="the urgent mail",
    )
    assert len(site.smtp.accepted) < 5_000


def test_a_rate_applies_to_all_workers_together(open_site) -> None:
    site = open_site("postgresql", RATES={"smtp": "20/s"})
    site.start_workers(2, concurrency=2)
    site.call(send_newsletter, 60, "emails")
    site.wait_for(sent=60)
    times = sorted(mail.time for mail in site.smtp.accepted)
    # The budget is used before a mail is sent, so it may arrive a little after its turn.
    assert all(late - early > 0.8 for early, late in zip(times, times[20:], strict=False))
    assert times[-1] - times[0] < 15
    site.require_each_arrived_once(60)


def _is_never(address: str) -> bool:
    return address.startswith("never")


def test_broker_and_results_contain_no_content(open_site) -> None:
    site = open_with_results(open_site)
    site.call(send_bulk_without_worker)
    with site.redis.client() as client:
        rings = [json.loads(ring) for ring in client.lrange("bulk_emails", 0, -1)]
    assert len(rings) == 1
    assert "secret" not in json.dumps(rings)
