"""Test that a password-reset link is only in the database, and there only until it is sent."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from email import message_from_bytes
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode, urljoin
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener, urlopen

from django.contrib.auth.models import Permission, User
from django.db import connection

from devservers.process import wait_until
from devservers.web import Flower, Web
from django_epica_mail import messages
from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_email_async
from tests.acceptance.places import EXAMPLE_PROJECT

if TYPE_CHECKING:
    from tests.acceptance.conftest import OpenSite
    from tests.acceptance.site import Site

VICTIM, CLERK = "victim@example.org", "clerk"
PASSWORD = "a-password-of-a-test"


# -- run in the site


def make_users() -> None:
    User.objects.create_user("victim", VICTIM, PASSWORD)
    clerk = User.objects.create_user(CLERK, "clerk@example.org", PASSWORD, is_staff=True)
    may_look = Permission.objects.filter(
        content_type__app_label="epica_mail", codename__startswith="view_"
    )
    clerk.user_permissions.set(may_look.exclude(codename="view_content"))


def waiting_link() -> list[str]:
    """Return the secret parts of the link in the waiting mail, read from its row."""
    log = EmailLog.objects.get()
    message = messages.load(log.envelope, {})
    assert log.keep_content == "until_sent"
    link = re.search(r"/accounts/reset/(\w+)/([\w-]+)/", str(message.body))
    assert link, message.body
    return [link[2], link[0]]


def send_again_with_a_handle(secrets: list[str]) -> None:
    """Send the same link with the call that stores its outcome in the result backend."""
    send_email_async("Link", f"Your link: {secrets[1]}", None, [VICTIM])


def tables_with(needles: list[str]) -> list[str]:
    """Return every column of the database that contains one of the needles."""
    found = set()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            names = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                for name, value in zip(names, row, strict=True):
                    text = (
                        bytes(value).decode("latin-1")
                        if isinstance(value, (bytes, memoryview))
                        else str(value)
                    )
                    if any(needle in text for needle in needles):
                        found.add(f"{table}.{name}")
    return sorted(found)


# -- where to search


def forms(secrets: list[str]) -> list[str]:
    """Return the ways to write the secrets: unchanged, in a URL, in the Base64 of a message."""
    written = set()
    for secret in secrets:
        written |= {secret, quote(secret, safe="")}
        for shift in range(3):
            encoded = b64encode(b"." * shift + secret.encode()).decode().rstrip("=")
            written.add(encoded[4:-4])  # the part that does not depend on the text around it
    return sorted(written)


class Browser:
    """A browser that keeps cookies and submits forms with their CSRF token."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._cookies = CookieJar()
        self._opener: OpenerDirector = build_opener(HTTPCookieProcessor(self._cookies))

    def get(self, path: str) -> str:
        """Return the page at a path, including an error page."""
        try:
            with self._opener.open(self._web.url(path), timeout=30) as answer:
                return str(answer.read().decode(errors="replace"))
        except HTTPError as error:
            return error.read().decode(errors="replace")

    def post(self, path: str, **fields: str) -> str:
        self.get(path)
        token = next(str(it.value) for it in self._cookies if it.name == "csrftoken")
        data = urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        with self._opener.open(Request(self._web.url(path), data), timeout=30) as answer:
            return str(answer.read().decode(errors="replace"))

    def crawl(self, start: str, most: int = 100) -> dict[str, str]:
        """Follow the links below a path; return the pages by path."""
        pages: dict[str, str] = {}
        waiting = [start]
        while waiting and len(pages) < most:
            path = waiting.pop(0)
            if path in pages:
                continue
            pages[path] = self.get(path)
            links = re.findall(r'(?:href|src)="([^"#?]+)', pages[path])
            waiting += [it for link in links if (it := urljoin(path, link)).startswith(start)]
        return pages


def redis_dump(site: Site) -> bytes:
    """Return all databases of Redis as it writes them to disk."""
    with site.redis.client() as client:
        client.config_set("rdbcompression", "no")  # compressed data cannot be searched
        client.save()
        name = client.config_get("dbfilename")["dbfilename"]
    return (site.folder / name).read_bytes()


def hits(text: str | bytes, secrets: list[str]) -> list[str]:
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    return [form for form in forms(secrets) if form in text]


def require_search_finds(site: Site, secrets: list[str]) -> None:
    """Fail unless a search of Redis finds secrets stored like a task's arguments."""
    body = json.dumps([[{"message": f"the link {secrets[1]} of a mail"}], {}, {}])
    with site.redis.client() as client:
        for key, value in (("plain", body), ("message", b64encode(body.encode()))):
            client.set(f"control-{key}", value)
            assert hits(redis_dump(site), secrets), key
            client.delete(f"control-{key}")


def flower_pages(flower: Flower) -> dict[str, str]:
    """Return what Flower's API and pages show of tasks and workers."""
    tasks: dict[str, Any] = json.loads(read(flower.url("/api/tasks?limit=10000")))
    paths = ["/api/workers?refresh=1", "/api/queues/length", "/api/task/types", "/workers"]
    paths += [f"{start}/{task}" for start in ("/api/task/info", "/task") for task in tasks]
    return {path: read(flower.url(path)) for path in ("/api/tasks?limit=10000", *paths)}


def read(url: str) -> str:
    try:
        with urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        return error.read().decode()


def require_nowhere(pages: dict[str, str], secrets: list[str]) -> None:
    assert {path: hits(page, secrets) for path, page in pages.items() if hits(page, secrets)} == {}


def logs(site: Site) -> dict[str, str]:
    """Return the logs of all processes of the site, by file name."""
    return {it.name: it.read_text(errors="replace") for it in site.folder.glob("*.log")}


# -- the test


def test_a_password_reset_link_is_only_in_the_database(
    open_site: OpenSite,
) -> None:
    site = open_site(KEEP_CONTENT="until_sent")
    site.env.update(SHOP_LOG_LEVEL="DEBUG", SHOP_RESULT_BACKEND=site.redis.url(db=1))
    site.call(make_users)
    with (
        Web(EXAMPLE_PROJECT, site.env, folder=site.folder) as web,
        Flower(EXAMPLE_PROJECT, "shopsite", site.env, folder=site.folder) as flower,
    ):
        # Django's own form and view, used with a browser.
        Browser(web).post("/accounts/password_reset/", email=VICTIM)
        secrets = site.call(waiting_link)
        assert site.call(tables_with, forms(secrets)) == ["epica_mail_emaillog.envelope"]
        site.call(send_again_with_a_handle, secrets)

        clerk = Browser(web)
        assert "Log out" in clerk.post("/admin/login/", username=CLERK, password=PASSWORD)
        pages = clerk.crawl("/admin/epica_mail/")
        assert sum("/emaillog/" in path for path in pages) > 1, "the crawl includes mails"
        assert any(VICTIM in page for page in pages.values())
        require_nowhere(pages, secrets)
        require_search_finds(site, secrets)
        assert hits(redis_dump(site), secrets) == []

        site.start_worker(loglevel="DEBUG", extra_args=("--task-events",))
        site.wait_for(sent=2)
        mails = [message_from_bytes(it.content) for it in site.smtp.accepted]
        bodies = [str(mail.get_payload(decode=True)) for mail in mails]
        assert [secrets[1] in body for body in bodies] == [True, True]

        wait_until(
            lambda: (
                '"deliver_emails"'
                in read(flower.url("/api/tasks")).replace("django_epica_mail.tasks.", "")
            ),
            timeout=30,
            what="Flower to know about the delivery",
        )
        require_nowhere(flower_pages(flower), secrets)
        with site.redis.client(db=1) as results:
            kept = [results.get(key) for key in results.keys("celery-task-meta-*")]
            assert any(b"SUCCESS" in it for it in kept), "the handle's result is stored"
        assert hits(redis_dump(site), secrets) == []
        require_nowhere(clerk.crawl("/admin/epica_mail/"), secrets)
        logged = logs(site)
        assert {"web.log", "flower.log"} < set(logged)
        assert any("DEBUG" in text for text in logged.values())
        require_nowhere(logged, secrets)
    assert site.call(tables_with, forms(secrets)) == []
