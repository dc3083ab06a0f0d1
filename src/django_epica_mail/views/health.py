"""The health check: 200 while mail flows, 503 while it does not."""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError, transaction
from django.http import HttpRequest, JsonResponse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail.health import Check, Verdict, examine
from django_epica_mail.views.access import may_monitor


@require_safe
@never_cache
@transaction.non_atomic_requests
def health(request: HttpRequest) -> JsonResponse:
    """Answer with the verdict, and with what was looked at for those who may see it."""
    try:
        verdict = examine()
    except DatabaseError as error:
        text = _("The tables of mail cannot be read (%(error)s).") % {"error": type(error).__name__}
        verdict = Verdict((Check("database", False, text),))
    answer: dict[str, Any] = {"status": _word(verdict.is_well)}
    if may_monitor(request):
        answer["checks"] = {
            check.name: {
                "status": _word(check.is_well),
                "text": check.text,
                "value": check.value,
                "limit": check.limit,
            }
            for check in verdict.checks
        }
    return JsonResponse(answer, status=200 if verdict.is_well else 503)


def _word(is_well: bool) -> str:
    return "ok" if is_well else "failing"
