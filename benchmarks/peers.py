"""Define the subjects: this package and its peers, each set up as its documentation advises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SMTP = "django.core.mail.backends.smtp.EmailBackend"
_CELERY = ("-m", "celery", "-A", "benchmarks.site.celery", "worker", "-l", "INFO")
_QUIET = ("--without-gossip", "--without-mingle", "-c", "{processes}")
_DJANGO = "Django~=5.2.0"


@dataclass(frozen=True)
class Subject:
    """One way to send mail. ``worker`` holds Python's arguments; if empty, no worker runs."""

    name: str
    packages: Sequence[str]
    settings: dict[str, Any]
    worker: Sequence[str] = ()
    apps: Sequence[str] = ()
    calls: str = "django"
    """Which functions of ``benchmarks.site.calls`` send mail."""
    django: str = _DJANGO
    ready: str = " ready."
    """What the worker logs once it is ready."""
    scenarios: str = "ABCDPHL"


_CELERY_WORKER = (*_CELERY, *_QUIET)
_EPICA: dict[str, Any] = {
    "packages": ("{repository}", "celery[redis]"),
    "settings": {"EMAIL_BACKEND": "django_epica_mail.backends.EmailBackend"},
    "apps": ("django_epica_mail",),
    "worker": (*_CELERY_WORKER, "-Q", "celery,emails,bulk_emails"),
    "calls": "epica",
    "scenarios": "ABCDPHLG",
}
_POST_OFFICE: dict[str, Any] = {
    "packages": ("django-post_office==3.12.0", "celery[redis]"),
    "apps": ("post_office",),
    "worker": _CELERY_WORKER,
}

SUBJECTS = (
    Subject(name="epica", **_EPICA),
    Subject(name="epica on Django 6.1", django="Django~=6.1.0", **_EPICA),
    Subject(
        name="celery-email",
        packages=("django-celery-email==3.0.0", "celery[redis]"),
        settings={
            "EMAIL_BACKEND": "djcelery_email.backends.CeleryEmailBackend",
            "CELERY_EMAIL_BACKEND": _SMTP,
        },
        apps=("djcelery_email",),
        worker=_CELERY_WORKER,
    ),
    Subject(
        name="post_office",
        settings={"POST_OFFICE": {"CELERY_ENABLED": True, "BACKENDS": {"default": _SMTP}}},
        calls="post_office",
        **_POST_OFFICE,
    ),
    Subject(
        name="post_office backend",
        settings={
            "EMAIL_BACKEND": "post_office.EmailBackend",
            "POST_OFFICE": {"CELERY_ENABLED": True, "BACKENDS": {"default": _SMTP}},
        },
        **_POST_OFFICE,
    ),
    Subject(
        name="mailer",
        packages=("django-mailer==2.3.2",),
        settings={"EMAIL_BACKEND": "mailer.backend.DbBackend", "MAILER_EMAIL_BACKEND": _SMTP},
        apps=("mailer",),
        worker=("-m", "django", "runmailer_pg"),
        ready="",
    ),
    Subject(
        name="hand-rolled",
        packages=("celery[redis]",),
        settings={},
        apps=("benchmarks.site.handrolled",),
        worker=_CELERY_WORKER,
        calls="handrolled",
    ),
    Subject(name="synchronous", packages=(), settings={}, scenarios="ABCD"),
)
