"""Sample contexts of templates (``PREVIEWS``), and what a template asks for in vain."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from os.path import splitext
from typing import Any

from django.conf import settings
from django.template import Context, Engine, TemplateDoesNotExist, engines
from django.template.backends.django import DjangoTemplates
from django.utils.module_loading import import_string

from django_epica_mail import conf

_SUFFIXES = (".txt", ".html")


def base_name(template: str) -> str:
    """Return a template's name without ``.txt`` or ``.html``."""
    return splitext(template)[0] if template.endswith(_SUFFIXES) else template


def context_of(template: str) -> Mapping[str, Any]:
    """Return the sample context of a template, in the current language.

    Raises ``KeyError`` for a template that ``PREVIEWS`` does not name, ``ImportError`` if the
    function it names does not exist, and whatever the function raises.
    """
    context = conf.get().previews[template]
    values: Mapping[str, Any] = import_string(context)() if isinstance(context, str) else context
    return values


def languages() -> list[str]:
    """Return the codes of the languages that the site offers.

    A site that has not set ``LANGUAGES`` offers its own ``LANGUAGE_CODE``: Django's default lists a
    hundred.
    """
    site: Any = settings
    if site.USE_I18N and site.is_overridden("LANGUAGES"):
        return [code for code, _ in settings.LANGUAGES]
    return [settings.LANGUAGE_CODE]


class _Wanted(str):
    """What an engine takes for missing variables: nothing, and notes their names."""

    names: set[str]

    def __new__(cls) -> _Wanted:
        self = super().__new__(cls, "%s")  # by which an engine sees that it wants the name
        self.names = set()
        return self

    def __mod__(self, variable: Any) -> str:
        self.names.add(str(variable))
        return ""


def missing_variables(template: str, values: Mapping[str, Any]) -> list[str]:
    """Return the variables that a template asked for and did not get, by an engine of its own.

    Only Django's template language says so. What ``if`` and ``for`` ask about may be missing.
    """
    wanted = _Wanted()
    for backend in engines.all():
        if not isinstance(backend, DjangoTemplates):
            continue
        origin = backend.engine
        engine = Engine(
            dirs=origin.dirs,
            app_dirs=origin.app_dirs,
            loaders=None if origin.app_dirs else origin.loaders,
            libraries=origin.libraries,
            builtins=origin.builtins,
            string_if_invalid=wanted,
        )
        for suffix in ("_subject.txt", *_SUFFIXES):
            with suppress(TemplateDoesNotExist):
                engine.get_template(f"{base_name(template)}{suffix}").render(Context(dict(values)))
    return sorted(wanted.names)
