"""What every page of the admin has in common: rows that no hand changes, and who may operate."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


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
