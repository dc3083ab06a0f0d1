"""The metrics, for a Prometheus that shows the token, and for staff."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail.metrics import exposition
from django_epica_mail.views.access import may_monitor


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with all metrics in the format asked for; 401 without permission."""
    if not may_monitor(request):
        # RFC 6750, section 3
        return HttpResponse(status=401, headers={"WWW-Authenticate": 'Bearer realm="epica_mail"'})
    content, content_type = exposition(request.headers.get("Accept", ""))
    return HttpResponse(content, content_type=content_type)
