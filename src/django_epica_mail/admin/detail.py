"""The page of an e-mail: its history, what it waits for and, with permission, its content."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from django.apps import apps
from django.contrib import admin
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import router
from django.db.models import QuerySet
from django.http import FileResponse, Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.translation import gettext as _

from django_epica_mail import lifecycle
from django_epica_mail.admin import content as admin_content
from django_epica_mail.admin import times
from django_epica_mail.admin.base import ReadOnlyPage, may_operate
from django_epica_mail.admin.changelist import afterwards, links
from django_epica_mail.admin.content import frame, sandboxed
from django_epica_mail.admin.mail_page.recipients import rows
from django_epica_mail.admin.mail_page.remedies import remedy, remedy_of
from django_epica_mail.admin.mail_page.timeline import timeline, waiting_for
from django_epica_mail.admin.operations import DETAIL, possible
from django_epica_mail.admin.sanitize import inline_images
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages.bounds import CLIPPED_BYTES
from django_epica_mail.models import EmailAttachment, EmailLog

_RECIPIENTS = 200
"""The page of an e-mail lists at most this many recipients."""
_SHOWN_BYTES = 1024 * 1024
"""The source of an e-mail is shown up to here; all of it is in the download."""
_REFRESH_SECONDS = 3
"""The page of an e-mail that has not ended renews itself this often."""

_FACTS = (
    *("id", "message_id", "from_email", "category", "queue", "transport", "fallbacks", "priority"),
    *("created_at", "due_at", "expires_at", "give_up_at", "finished_at"),
    *("attempts", "tries", "max_retries", "retry_delay", "retry_delays"),
    *("on_unknown", "keep_content", "idempotency_key", "worker", "reply"),
)
_PLAIN = "text/plain; charset=utf-8"


def may_see_content(request: HttpRequest) -> bool:
    """Return whether the user may read e-mails, their attachments and previews."""
    return request.user.has_perm("epica_mail.view_content")


class Detail(ReadOnlyPage):
    """A model admin with a page for each e-mail."""

    page_template = "admin/epica_mail/email.html"

    def get_urls(self) -> list[URLPattern]:
        """Add the URLs of an e-mail's HTML, raw message and attachments."""
        view = self.admin_site.admin_view
        own = [
            path("<uuid:pk>/html/", view(self.html_view), name="epica_mail_emaillog_html"),
            path("<uuid:pk>/raw/", view(self.raw_view), name="epica_mail_emaillog_raw"),
            path(
                "<uuid:pk>/attachments/<uuid:attachment>/",
                view(self.attachment_view),
                name="epica_mail_emaillog_attachment",
            ),
        ]
        return [*own, *super().get_urls()]

    def find(self, request: HttpRequest, object_id: str) -> EmailLog | None:
        """Return the e-mail with all of its columns, some of which the list defers."""
        return _find(object_id)

    def page(self, request: HttpRequest, row: EmailLog) -> dict[str, Any]:
        """Return an e-mail's history, the operations on it and, with permission, its content."""
        using = row._state.db or "default"
        recipients = list(row.recipients.order_by("position")[: _RECIPIENTS + 1])
        return {
            "title": row.subject or _("(no subject)"),
            "mail": row,
            "afterwards": afterwards.badge(afterwards.of_each([row.pk], using).get(row.pk)),
            "facts": list(_facts(row)),
            "timeline": timeline(row, with_links=may_see_content(request)),
            "waiting_for": waiting_for(row),
            "remedy": remedy(row),
            "bad_news": [
                (it, times.element(it.at), remedy_of(it)) for it in afterwards.bad_news(row)
            ],
            "refresh": 0 if row.status in lifecycle.FINAL else _REFRESH_SECONDS,
            "recipients": rows(request, self.admin_site, recipients[:_RECIPIENTS], using),
            "has_more_recipients": len(recipients) > _RECIPIENTS,
            "operations": possible(row) if may_operate(request) else [],
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
            "from_detail": DETAIL,
            "result_url": _result_url(request, self.admin_site, row),
            "may_see_content": may_see_content(request),
            **(self._content(request, row) if may_see_content(request) else {}),
        }

    def html_view(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Return an e-mail's HTML, sandboxed."""
        html = self._read(request, pk).html
        if not html:
            raise Http404("The e-mail has no HTML.")
        inline = {}
        if "cid:" in html.lower():
            with contextlib.suppress(UnreadableEnvelope):  # then without its images
                inline = inline_images(self._mail(request, pk))
        return sandboxed(html, images=request.GET.get("images") == "1", inline=inline)

    def raw_view(self, request: HttpRequest, pk: UUID) -> HttpResponseBase:
        """Return an e-mail as a file that mail programs can open, or its source with ``?show``."""
        mail = self._mail(request, pk)
        try:
            content = admin_content.as_sent(mail)
        except Exception as error:
            raise Http404("The e-mail cannot be read.") from error
        if "show" in request.GET:
            return _sealed(HttpResponse(content[:_SHOWN_BYTES], content_type=_PLAIN))
        return _download(content, f"{mail.pk}.eml")

    def attachment_view(self, request: HttpRequest, pk: UUID, attachment: UUID) -> HttpResponseBase:
        """Return an attachment as a download."""
        mail = self._mail(request, pk)
        try:
            row = _attachments(mail).filter(pk=attachment).first()
            content = b"" if row is None else row.data
        except UnreadableEnvelope as error:
            raise Http404("The attachment cannot be read.") from error
        if row is None:
            raise Http404("The e-mail has no such attachment.")
        return _download(content, row.filename or f"{row.pk}.bin")

    def _mail(self, request: HttpRequest, pk: UUID) -> EmailLog:
        if not (self.has_view_permission(request) and may_see_content(request)):
            raise PermissionDenied
        mail = _find(pk)
        if mail is None or not mail.envelope:
            raise Http404("There is no such e-mail, or its content was deleted.")
        return mail

    def _read(self, request: HttpRequest, pk: UUID) -> admin_content.ReadableContent:
        try:
            return admin_content.read_content(self._mail(request, pk))
        except (PermissionDenied, Http404):
            raise
        except Exception as error:
            raise Http404("The e-mail cannot be read.") from error

    def _content(self, request: HttpRequest, mail: EmailLog) -> dict[str, Any]:
        if not mail.envelope:
            return {"is_forgotten": True}
        try:
            content = admin_content.read_content(mail)
        except Exception as error:  # noqa: BLE001 - the page shows any error
            return {"unreadable": f"{type(error).__name__}: {error}"}
        source = links.page_url(self.admin_site, "emaillog_html", mail.pk)
        return {
            "content": content,
            "html_bytes": (size := len(content.html.encode(errors="replace"))),
            "is_clipped": size > CLIPPED_BYTES,
            "frame": frame(request, source) if content.html else None,
            "attachments": _attachments(mail).defer("content").order_by("pk"),
        }


def _attachments(mail: EmailLog) -> QuerySet[EmailAttachment]:
    """Return the attachments that the message names, of those linked to its row."""
    return mail.attachments.filter(digest__in=mail.attached_digests())


def _find(pk: UUID | str) -> EmailLog | None:
    try:
        return EmailLog.objects.using(router.db_for_read(EmailLog)).filter(pk=pk).first()
    except ValidationError:  # not a valid id
        return None


def _facts(mail: EmailLog) -> Iterator[tuple[str, Any]]:
    """Yield the other values of a row with their labels, leaving out empty ones."""
    for name in _FACTS:
        value = getattr(mail, name)
        if value not in ("", None, []):
            field: Any = EmailLog._meta.get_field(name)
            shown = getattr(mail, f"get_{name}_display")() if field.choices else value
            yield str(field.verbose_name), _in_words(shown)


def _in_words(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return times.moment(value) if isinstance(value, datetime) else value


def _result_url(request: HttpRequest, site: admin.AdminSite, mail: EmailLog) -> str:
    """Return the URL of an e-mail's Celery result in the admin, or ``""`` if it has none."""
    if not apps.is_installed("django_celery_results"):
        return ""
    if not request.user.has_perm("django_celery_results.view_taskresult"):
        return ""
    results: Any = apps.get_model("django_celery_results", "TaskResult")  # type: ignore[misc]
    pk = results.objects.filter(task_id=str(mail.pk)).values_list("pk", flat=True).first()
    page = "admin:django_celery_results_taskresult_change"
    try:
        return reverse(page, args=[pk], current_app=site.name) if pk else ""
    except NoReverseMatch:
        return ""


def _download(content: bytes, filename: str) -> HttpResponseBase:
    """Return bytes as a download that no browser opens on the admin's own site."""
    response = FileResponse(
        io.BytesIO(content),
        as_attachment=True,
        filename=filename,
        content_type="application/octet-stream",
    )
    return _sealed(response)


def _sealed(response: HttpResponseBase) -> HttpResponseBase:
    """Return a response that browsers neither interpret nor keep."""
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response["Cache-Control"] = "no-store, private"
    return response
