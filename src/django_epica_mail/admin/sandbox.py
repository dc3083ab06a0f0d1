"""Showing HTML of strangers: what a mail says must do nothing in the admin."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict

_POLICY = (
    "sandbox",  # no scripts, forms, pop-ups or navigation of the page around it
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "img-src {images}",
    "font-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'self'",
)
_OWN_IMAGES, _ALL_IMAGES = "data:", "data: https: http:"


def sandboxed(html: str, *, images: bool) -> HttpResponse:
    """Return a mail's HTML as a page that can do nothing; ``images``: it may load remote ones.

    The policy holds wherever the page is opened, in the frame made for it or not.
    """
    response = HttpResponse(html, content_type="text/html; charset=utf-8")
    policy = "; ".join(_POLICY).format(images=_ALL_IMAGES if images else _OWN_IMAGES)
    response["Content-Security-Policy"] = policy
    response["X-Frame-Options"] = "SAMEORIGIN"
    response["X-Content-Type-Options"] = "nosniff"
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store, private"
    return response


def frame(request: HttpRequest, source: str) -> dict[str, Any]:
    """Return what the template of the frame needs: how the mail is looked at, and the ways else.

    ``source`` is the address of the sandboxed page. What is chosen stands in the query.
    """
    chosen = {
        "width": "phone" if request.GET.get("width") == "phone" else "desktop",
        "theme": "dark" if request.GET.get("theme") == "dark" else "light",
        "images": "1" if request.GET.get("images") == "1" else "0",
    }
    mark = "&" if "?" in source else "?"
    return {
        **chosen,
        "source": f"{source}{mark}images={chosen['images']}",
        "links": {
            f"{name}_{value}": _link(request.GET, name, value)
            for name, values in (
                ("width", ("desktop", "phone")),
                ("theme", ("light", "dark")),
                ("images", ("0", "1")),
            )
            for value in values
        },
    }


def _link(query: QueryDict, name: str, value: str) -> str:
    changed = query.copy()
    changed[name] = value
    return f"?{changed.urlencode()}#epica-preview"
