"""Test every cell of the comparison in the docs against the installed packages.

Each row has a function that answers its question for one package; the cells must be the answers.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.mime.image import MIMEImage
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import mailer.engine
import post_office.mail
import pytest
from django.apps import apps
from django.core.mail import EmailMessage, get_connection
from django.db import OperationalError, connection, transaction
from django.test import TestCase
from django_yubin.engine import send_db_message
from django_yubin.models import Message as YubinMessage
from djcelery_email.tasks import send_emails

from django_epica_mail.delivery import worker
from tests.peers import wire

ROOT = Path(__file__).parents[2]
IMAGE = b"\x89PNG\r\n\x1a\n\0\xff"
in_broker: list[Any] = []


def deliver_yubin() -> None:
    for pk in YubinMessage.objects.values_list("pk", flat=True):
        send_db_message(pk)


def deliver_celery_email() -> None:
    while in_broker:
        send_emails.run(*in_broker.pop())


@dataclass(frozen=True)
class Package:
    """One way to queue mail."""

    name: str
    app: str
    backend: str
    deliver: Callable[[], Any]
    table: str | None

    def send(self, message: EmailMessage) -> None:
        get_connection(self.backend).send_messages([message])


PACKAGES = [
    Package(
        "django-epica-mail",
        "epica_mail",
        "django_epica_mail.backends.EmailBackend",
        lambda: worker.deliver("emails"),
        "EmailLog",
    ),
    Package(
        "django-post_office",
        "post_office",
        "post_office.EmailBackend",
        lambda: post_office.mail.send_queued(log_level=0),
        "Email",
    ),
    Package(
        "django-mailer", "mailer", "mailer.backend.DbBackend", mailer.engine.send_all, "Message"
    ),
    Package(
        "django-yubin",
        "django_yubin",
        "django_yubin.backends.QueuedEmailBackend",
        deliver_yubin,
        "Message",
    ),
    Package(
        "django-celery-email",
        "djcelery_email",
        "djcelery_email.backends.CeleryEmailBackend",
        deliver_celery_email,
        None,
    ),
]


def order(body: str = "Thank you.") -> EmailMessage:
    return EmailMessage("Order 7", body, "shop@example.com", ["a@example.com"])


def arrives(package: Package, message: EmailMessage) -> EmailMessage | None:
    try:
        package.send(message)
    except Exception:  # noqa: BLE001 - an exception in the caller is an answer, too
        return None
    package.deliver()
    return wire.arrived[0] if wire.arrived else None


def rollback(package: Package) -> bool:
    with suppress(RuntimeError), transaction.atomic():
        package.send(order())
        raise RuntimeError
    package.deliver()
    return not wire.arrived


def broker_down(package: Package) -> bool:
    started = time.monotonic()
    try:
        with TestCase.captureOnCommitCallbacks(execute=True):
            package.send(order())
    except Exception:  # noqa: BLE001 - any exception fails the request
        return False
    return time.monotonic() - started < 2


def braces(package: Package) -> bool:
    body = "Dear {{ name }}, take {% 50 %} off."
    arrived = arrives(package, order(body))
    return arrived is not None and arrived.body == body


def attributes(package: Package) -> bool:
    message = order()
    message.tags, message.envelope_sender = ["order"], "bounces@example.com"  # type: ignore[attr-defined]
    arrived = arrives(package, message)
    assert arrived is not None
    return all(
        getattr(arrived, name, None) == getattr(message, name)
        for name in ("tags", "envelope_sender")
    )


def inline_image(package: Package) -> bool:
    image = MIMEImage(IMAGE, "png")
    image.add_header("Content-ID", "<logo>")
    image.add_header("Content-Disposition", "inline", filename="logo.png")
    message = order()
    message.attach(image)
    arrived = arrives(package, message)
    assert arrived is not None
    part = arrived.message().get_payload()[1]
    return part["Content-ID"] == "<logo>" and part.get_payload(decode=True) == IMAGE


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    """Run a function in a thread with its own connection, like another process."""

    def run() -> None:
        try:
            function()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def two_senders(package: Package) -> bool:
    others: list[threading.Thread] = []

    def also_send() -> None:
        others.append(in_thread(package.deliver))
        others[0].join(2)  # if it waits for a lock, it continues afterwards

    package.send(order())
    wire.while_sending.append(also_send)
    package.deliver()
    others[0].join(20)
    return len(wire.arrived) == 1


def no_lock(package: Package) -> bool:
    free: list[bool] = []

    def try_to_lock() -> None:
        rows = apps.get_model(package.app, str(package.table)).objects
        try:
            with transaction.atomic():
                free.append(bool(list(rows.select_for_update(nowait=True))))
        except OperationalError:
            free.append(False)

    package.send(order())
    wire.while_sending.append(lambda: in_thread(try_to_lock).join(20))
    package.deliver()
    (answer,) = free
    return answer


def no_pickle(package: Package) -> bool:
    read: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pickle.loads", lambda data: read.append(data))
        arrives(package, order())
    return not read


def searchable(package: Package) -> bool:
    package.send(order())
    return any(
        model.objects.filter(subject="Order 7").exists()
        for model in apps.get_app_config(package.app).get_models()
        if any(field.name == "subject" for field in model._meta.concrete_fields)
    )


def without_celery(package: Package) -> bool:
    needed = [line for line in requires(package.name) or () if "extra ==" not in line]
    return not any(line.lower().startswith("celery") for line in needed)


def templates_in_database(package: Package) -> bool:
    return any(
        "Template" in model.__name__ for model in apps.get_app_config(package.app).get_models()
    )


ROWS: dict[str, Callable[[Package], bool]] = {
    "a rollback removes the mail": rollback,
    "a request neither fails nor waits while the broker is down": broker_down,
    "two workers never send the same mail": two_senders,
    "no row is locked during the SMTP dialogue": no_lock,
    "`{{ }}` in bodies is left untouched": braces,
    "inline images are left untouched": inline_image,
    "attributes such as anymail's `tags` reach the transport": attributes,
    "stores no pickles": no_pickle,
    "the admin searches by subject": searchable,
    "works without Celery": without_celery,
    "keeps templates in the database": templates_in_database,
}


@pytest.fixture(autouse=True)
def _queue(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Iterator[None]:
    """Make every package send with the recording backend, and with a broker that accepts tasks."""
    settings.MEDIA_ROOT = tmp_path
    settings.POST_OFFICE = {"BACKENDS": {"default": "tests.peers.wire.Backend"}}
    settings.EPICA_MAIL = {
        "TRANSPORTS": {"smtp": {"BACKEND": "tests.peers.wire.Backend"}},
        "REAL_TRANSPORTS_IN_TESTS": True,
    }
    wire.arrived.clear()
    wire.while_sending.clear()
    in_broker.clear()
    with pytest.MonkeyPatch.context() as patch:
        if "broker_down" not in request.node.name:
            patch.setattr(send_emails, "delay", publish)
            patch.setattr("django_yubin.tasks.send_email.delay", lambda **_: None)
        yield


def publish(*arguments: Any) -> None:
    in_broker.append(json.loads(json.dumps(arguments)))


def table() -> dict[tuple[str, str], str]:
    """Return the cells of the page's first table by row and package."""
    page = (ROOT / "docs" / "explanation" / "why.md").read_text(encoding="utf-8")
    first = page[page.index("\n|") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.split("\n")[1:]]
    heads = [re.match(r"[\w-]+", head)[0] for head in rows[0][1:]]  # type: ignore[index]
    return {
        (row[0], head): cell for row in rows[2:] for head, cell in zip(heads, row[1:], strict=True)
    }


CELLS = table()


def cases(transactional: bool) -> list[Any]:
    found = []
    for (row, name), cell in CELLS.items():
        probe = ROWS[row]
        if cell != "–" and (probe in (two_senders, no_lock)) is transactional:
            package = next(it for it in PACKAGES if it.name == name)
            found.append(pytest.param(probe, package, cell, id=f"{probe.__name__}-{name}"))
    return found


def test_the_table_has_a_cell_for_every_row_and_package() -> None:
    assert set(CELLS) == {(row, package.name) for row in ROWS for package in PACKAGES}
    unanswered = {cell for cell in CELLS.items() if cell[1] == "–"}
    assert {key for key, _ in unanswered} == {
        (row, package.name)
        for row, probe in ROWS.items()
        for package in PACKAGES
        if probe in (two_senders, no_lock) and package.table is None
    }


@pytest.mark.django_db
@pytest.mark.parametrize(("probe", "package", "cell"), cases(transactional=False))
def test_a_cell_is_true(probe: Any, package: Package, cell: str) -> None:
    assert ("yes" if probe(package) else "no") == cell


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("probe", "package", "cell"), cases(transactional=True))
def test_a_cell_about_two_processes_is_true(probe: Any, package: Package, cell: str) -> None:
    assert ("yes" if probe(package) else "no") == cell
