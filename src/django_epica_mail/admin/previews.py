"""Previews of e-mail templates with sample contexts, in each language of the site."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import translation
from django.utils.translation import gettext as _

from django_epica_mail import conf
from django_epica_mail.admin.changelist.links import page_url
from django_epica_mail.admin.content import frame, sandboxed
from django_epica_mail.admin.detail import may_see_content
from django_epica_mail.queueing.rendering import render, samples


class Chosen(NamedTuple):
    """The template and the language to preview."""

    template: str
    language: str

    @property
    def query(self) -> str:
        """The query string that asks for this preview."""
        return urlencode(self._asdict())


class Previews(admin.ModelAdmin):  # type: ignore[type-arg]
    """A model admin with preview pages in addition to its own."""

    def get_urls(self) -> list[URLPattern]:
        """Add the URLs of the preview page and of the HTML in its frame."""
        view = self.admin_site.admin_view
        own = [
            path("previews/", view(self.previews_view), name="epica_mail_emaillog_previews"),
            path("previews/html/", view(self.preview_view), name="epica_mail_emaillog_preview"),
        ]
        return [*own, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """Show the list, with a link to the previews if there are any."""
        has_previews = bool(conf.get().previews) and may_see_content(request)
        return super().changelist_view(
            request, {"has_previews": has_previews, **(extra_context or {})}
        )

    def previews_view(self, request: HttpRequest) -> HttpResponse:
        """Show the templates to choose from, and the e-mail that the chosen one makes."""
        if not may_see_content(request):
            raise PermissionDenied
        chosen = _chosen(request)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Template previews"),
            "templates": [_choice(name, request, chosen) for name in sorted(conf.get().previews)],
            "languages": [_language(code, name, chosen) for code, name in settings.LANGUAGES],
            "chosen": chosen,
            **(_rendered(request, self.admin_site, chosen) if chosen else {}),
        }
        return TemplateResponse(request, "admin/epica_mail/previews.html", context)

    def preview_view(self, request: HttpRequest) -> HttpResponse:
        """Return the HTML of a preview, sandboxed."""
        if not may_see_content(request):
            raise PermissionDenied
        chosen = _chosen(request)
        try:
            mail = chosen and _render(chosen)
        except Exception as error:
            raise Http404("The template cannot be rendered.") from error
        if not mail or not mail.html:
            raise Http404("There is no such preview.")
        return sandboxed(mail.html, images=request.GET.get("images") == "1")


def _chosen(request: HttpRequest) -> Chosen | None:
    """Return what the query string asks to preview: only templates in the settings."""
    template = request.GET.get("template", "")
    if template not in conf.get().previews:
        return None
    language = request.GET.get("language", "")
    if language not in dict(settings.LANGUAGES):
        language = translation.get_language() or settings.LANGUAGE_CODE
    return Chosen(template, language)


def _choice(name: str, request: HttpRequest, chosen: Chosen | None) -> tuple[str, str, bool]:
    """Return a template, the query string of its preview, and whether it is shown."""
    language = request.GET.get("language", "")
    return name, Chosen(name, language).query, chosen is not None and chosen.template == name


def _language(code: str, name: str, chosen: Chosen | None) -> tuple[str, str, bool]:
    """Return the same of a language; without a chosen template there is no query string."""
    query = Chosen(chosen.template, code).query if chosen else ""
    return str(_(name)), query, chosen is not None and chosen.language == code


def _rendered(request: HttpRequest, site: admin.AdminSite, chosen: Chosen) -> dict[str, Any]:
    try:
        with render.speaking(chosen.language):
            values = samples.context_of(chosen.template)
            mail = render.render(chosen.template, values)
            missing = samples.missing_variables(chosen.template, values)
    except Exception as error:  # noqa: BLE001 - an unfinished template; the page shows why
        return {"problem": f"{type(error).__name__}: {error}"}
    source = f"{page_url(site, 'emaillog_preview')}?{chosen.query}"
    return {
        "rendered": mail,
        "missing": missing,
        "frame": frame(request, source) if mail.html else None,
    }


def _render(chosen: Chosen) -> render.Rendered:
    with render.speaking(chosen.language):
        return render.render(chosen.template, samples.context_of(chosen.template))
