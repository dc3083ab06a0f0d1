"""What every page of the admin has in common: rows that no hand changes, and who may operate."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse


def may_operate(request: HttpRequest) -> bool:
    """Tell whether a person may move mail, and stop queues and transports and let them go on."""
    return request.user.has_perm("epica_mail.operate_emaillog")


class ReadOnly:
    """Shows rows and changes none: the queue's rows move by its own rules only."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Page(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """Shows a row as a page to read, and not as a form."""

    page_template: str

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row of an address, or ``None``."""
        return self.get_object(request, object_id)

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """Return what the template shows of a row, its ``title`` among it."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a row; nobody changes one."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        row = self.find(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(  # type: ignore[attr-defined,no-any-return]
                request, self.opts, object_id
            )
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            **self.page(request, row),
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.page_template, context)
