"""Renders an e-mail from templates: its subject, its plain text and its HTML.

The templates ``emails/welcome_subject.txt``, ``emails/welcome.txt`` and ``emails/welcome.html``
make up the mail ``emails/welcome``. Django looks each of them up separately, so a site that
overrides only one of them keeps the package's others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from os.path import splitext
from pathlib import Path
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template, TemplateDoesNotExist
from django.template.loader import get_template
from django.utils import translation
from django.views.decorators.debug import sensitive_variables

_is_rendering = ContextVar("django_epica_mail_is_rendering", default=False)


class WithoutContext(logging.Filter):
    """Takes the traceback from what Django logs of a variable that a mail's template lacks.

    Its text quotes the whole context, with names, addresses and links.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, without its traceback while a mail is rendered."""
        if _is_rendering.get():
            record.exc_info = record.exc_text = None
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The rendered templates of one mail."""

    subject: str | None = field(repr=False)
    """One line; ``None`` if the mail has no ``_subject.txt`` template."""
    text: str = field(repr=False)
    """The plain text, from the ``.txt`` template or derived from the HTML."""
    html: str | None = field(repr=False)
    """The HTML, with CSS inlined if ``css-inline`` is installed; ``None`` for plain-text mail."""
    name: str
    """The name that was found, as the caller wrote it."""


class _Templates(NamedTuple):
    """The templates found for a name; their class depends on the template backend."""

    name: str
    subject: Any | None
    text: Any | None
    html: Any | None


@sensitive_variables()
def render(
    template_name: str | Sequence[str],
    context: Mapping[str, Any] | None = None,
    *,
    language: str | None = None,
    using: str | None = None,
) -> Rendered:
    """Render the templates of a mail.

    For a mail with the files ``x.html``, ``x.txt`` and ``x_subject.txt``, ``template_name`` may be:

    - ``x.html``: the HTML must exist; the other two are used if they exist;
    - ``x.txt``: the text must exist; the mail is plain text even if ``x.html`` exists;
    - ``x``: the HTML or the text must exist; all that exist are used;
    - a list of these: the first one found is used, as in Django's ``select_template``.

    ``context`` may hold any objects. ``language`` is a code from the site's ``LANGUAGES``, by
    default the current language. ``using`` is the alias of a template engine, by default all of
    them in order. ``.txt`` templates, and those they include or extend, are rendered without HTML
    escaping.

    Raises ``TemplateDoesNotExist`` naming every file looked for; ``ValueError`` for an unknown
    language, or for a variable that one of the package's own templates needs and ``context`` lacks;
    ``TypeError`` for a name or context of the wrong type; ``ImproperlyConfigured`` if the text must
    be derived and the extra ``templates`` is not installed; and whatever the templates raise.
    """
    if context is not None and not isinstance(context, Mapping):
        raise TypeError(f"context must be a dict of the template's variables; it is {context!r}.")
    templates = _select(_names(template_name), using)
    # Each template gets its own dict, because Django's tags store variables in it.
    values = context or {}
    _require_variables(templates, values)
    with speaking(language), _rendering():
        subject = templates.subject and _render_plain(templates.subject, dict(values))
        text = templates.text and _render_plain(templates.text, dict(values))
        html = templates.html and _inline_css(_unmarked(templates.html.render(dict(values))))
    return Rendered(
        subject=None if subject is None else " ".join(subject.split()),
        text=_derive_text(html or "", templates.name) if text is None else text,
        html=html,
        name=templates.name,
    )


@sensitive_variables()
def raw_subject(template_name: str, context: Mapping[str, Any]) -> str | None:
    """Return the subject as its template makes it, with line ends, in the current language.

    Returns ``None`` if there is no such template. Raises as ``render`` does.
    """
    template = _select([template_name], None).subject
    with _rendering():
        return None if template is None else _render_plain(template, dict(context))


_MOST_PADDED = 20_000_000
"""Characters of a derived text whose tables are laid out, with the padding of their cells."""

_SHIPPED = Path(__file__).parents[2] / "templates"

_REQUIRED: Mapping[str, Sequence[tuple[str, ...]]] = {
    "emails/password_reset": [("reset_url", "reset_link")],
    "emails/notification": [("title",), ("body",)],
}
"""The variables that the package's own templates cannot do without; one of each group."""


@sensitive_variables()
def _require_variables(templates: _Templates, values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if one of the package's own templates lacks a variable it needs.

    Django renders a missing variable as nothing, so that the mail would arrive without its link. A
    site's own template of the same name is left to Django's rules.
    """
    found = templates.html or templates.text
    origin = str(getattr(getattr(found, "origin", None), "name", ""))
    if _SHIPPED not in Path(origin).parents:
        return
    name = splitext(Path(origin).relative_to(_SHIPPED).as_posix())[0]
    for group in _REQUIRED.get(name, ()):
        if not any(values.get(variable) for variable in group):
            raise ValueError(
                f"The template {templates.name!r} needs the variable {' or '.join(group)} in its "
                f"context; the context has: {', '.join(sorted(map(str, values))) or 'nothing'}."
            )


@contextmanager
def _rendering() -> Iterator[None]:
    token = _is_rendering.set(True)
    try:
        yield
    finally:
        _is_rendering.reset(token)


def _names(template_name: object) -> list[str]:
    names = [template_name] if isinstance(template_name, str) else template_name
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"template_name must be a template's name or a list of names; it is {template_name!r}."
        )
    return list(names)


def _select(names: list[str], using: str | None) -> _Templates:
    tried: list[str] = []
    reasons: list[TemplateDoesNotExist] = []

    def find(name: str) -> Any | None:
        try:
            return get_template(name, using=using)
        except TemplateDoesNotExist as error:
            tried.append(name)
            reasons.extend(error.chain)
            return None

    for name in names:
        base, suffix = splitext(name)
        if suffix not in (".html", ".txt"):
            base, suffix = name, ""
        html = None if suffix == ".txt" else find(f"{base}.html")
        text = None if suffix == ".html" and html is None else find(f"{base}.txt")
        if html is not None or text is not None:
            return _Templates(name, find(f"{base}_subject.txt"), text, html)
    raise TemplateDoesNotExist(", ".join(tried) or "No template names provided", chain=reasons)


def speaking(language: str | None) -> AbstractContextManager[None]:
    """Return a context that activates one of the site's languages; ``None`` keeps the current one.

    Raises ``ValueError`` for a language that the site does not offer.
    """
    if language is None:
        return nullcontext()
    try:
        code = translation.get_supported_language_variant(language)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"language must be a code from LANGUAGES (LANGUAGE_CODE if USE_I18N is off); "
            f"it is {language!r}. Add it to the settings, or omit it to use the current language."
        ) from error
    return translation.override(code)


def _render_plain(template: Any, values: dict[str, Any]) -> str:
    """Render a template without HTML escaping, which is otherwise a setting of its engine."""
    inner: Any = getattr(template, "template", None)
    if isinstance(inner, Template):
        return _unmarked(inner.render(Context(values, autoescape=False)))
    if hasattr(inner, "environment"):
        inner = _unescaped(inner.environment).get_template(inner.name)
        return _unmarked(inner.render(values))
    return _unmarked(template.render(values))


def _unmarked(rendered: str) -> str:
    """Return a plain ``str``, so that a mail's text is not trusted as safe HTML elsewhere."""
    return rendered + ""


@lru_cache(maxsize=8)
def _unescaped(environment: Any) -> Any:
    """Return an overlay of a Jinja2 environment that compiles templates without escaping."""
    return environment.overlay(autoescape=False)


def _inline_css(html: str) -> str:
    """Copy the rules of ``<style>`` into ``style`` attributes, if ``css-inline`` is installed.

    ``<style>`` itself stays, for rules that cannot be inlined (``@media``, ``:hover``): removing
    only the inlined rules loses ``@media`` in some versions of the library. Nothing is fetched:
    linked stylesheets are left alone.
    """
    if "<style" not in html.lower():
        return html
    try:
        css_inline: Any = import_module("css_inline")
    except ImportError:
        return html
    inlined: str = css_inline.inline(
        html, keep_style_tags=True, keep_link_tags=True, load_remote_stylesheets=False
    )
    return inlined


def _derive_text(html: str, name: str) -> str:
    try:
        inscriptis: Any = import_module("inscriptis")
        lxml_html: Any = import_module("lxml.html")
    except ImportError as error:
        raise ImproperlyConfigured(
            f"{name!r} has no plain-text template, and the packages that derive the text from the "
            f'HTML are not installed: pip install "django-epica-mail[templates]", or write '
            f"{name.removesuffix('.html')}.txt."
        ) from error
    # As bytes, because lxml refuses a str with an XML declaration; as UTF-8, whatever <meta> says.
    parser = lxml_html.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        document = lxml_html.document_fromstring(html.encode(), parser=parser)
    except lxml_html.etree.ParserError:
        return ""  # the document is empty
    _spell_out_links(document)
    # Centred text in a layout cell would be padded with spaces.
    lxml_html.etree.strip_attributes(document, "align")
    config = inscriptis.model.config.ParserConfig(
        css=inscriptis.css_profiles.STRICT_CSS_PROFILE, display_images=True
    )
    text = None
    if (html.count("<") + html.count("\n")) * len(html) > _MOST_PADDED:
        text = _without_columns(document, lambda it: inscriptis.Inscriptis(it, config).get_text())
    if text is None:
        text = inscriptis.Inscriptis(document, config).get_text()
    # Layout tables are padded to their width, and their gaps become many empty lines.
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"


def _without_columns(document: Any, write: Callable[[Any], str]) -> str | None:
    """Return the text with a line for each cell of a table, if it is too large for columns.

    Every line of a cell is padded to the longest one of its column, so that a visitor's text of
    thousands of lines and one long line would fill the memory.
    """
    flat = deepcopy(document)
    for element in flat.iter("table", "tr", "td", "th"):
        element.tag = "div"
    text = write(flat)
    lines = text.split("\n")
    columns = max((len(row) for row in document.iter("tr")), default=1)
    return text if len(lines) * max(map(len, lines)) * columns > _MOST_PADDED else None


def _spell_out_links(document: Any) -> None:
    for link in document.iterfind(".//a[@href]"):
        address = link.get("href").strip()
        shown = " ".join(link.text_content().split())
        bare = re.sub(r"^(mailto|tel):", "", address)
        if not address.startswith("#") and bare.rstrip("/") != shown.rstrip("/"):
            # In angle brackets, as RFC 3986 recommends for plain text (appendix C).
            span = link.makeelement("span")
            span.text = f" <{address}>"
            link.append(span)
