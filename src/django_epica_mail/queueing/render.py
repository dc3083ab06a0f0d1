"""An e-mail made from templates: its subject, its plain text and its HTML.

Given ``emails/welcome``, the files ``emails/welcome_subject.txt``, ``emails/welcome.txt`` and
``emails/welcome.html`` are one mail. Each is looked for by itself, as Django looks for any
template, so a site that overrides only one of them keeps the package's others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from os.path import splitext
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template, TemplateDoesNotExist
from django.template.loader import get_template
from django.utils import translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What the templates of one mail became."""

    subject: str | None
    """One line; ``None`` where no ``_subject.txt`` is beside the template."""
    text: str
    """The plain text: of the ``.txt`` template, or derived from the HTML."""
    html: str | None
    """The HTML, its CSS inlined where ``css-inline`` is installed; ``None`` for a mail of text."""
    name: str
    """The name that was chosen, as the caller wrote it."""


class _Templates(NamedTuple):
    """The templates found for a name; they differ in class from backend to backend."""

    name: str
    subject: Any | None
    text: Any | None
    html: Any | None


def render(
    template_name: str | Sequence[str],
    context: Mapping[str, Any] | None = None,
    *,
    language: str | None = None,
    using: str | None = None,
) -> Rendered:
    """Render the mail that a template name stands for.

    What ``template_name`` may be, of a mail whose files are ``x.html``, ``x.txt`` and
    ``x_subject.txt``:

    - ``x.html``: the HTML must exist, the two others are used if they do;
    - ``x.txt``: the text must exist; a mail of plain text, whether or not ``x.html`` exists;
    - ``x``: the HTML or the text must exist, whatever exists is used;
    - a list of these: the first that is found, as in Django's ``select_template``.

    ``context`` holds any objects. ``language`` is a code of the site's ``LANGUAGES``, by default
    the current language; ``using`` the alias of a template engine, by default all in order.
    ``.txt`` templates, what they include and what they extend are rendered without HTML escaping.

    Raises ``TemplateDoesNotExist`` naming every file looked for; ``ValueError`` for an unknown
    language; ``TypeError`` for a name or context of the wrong type; ``ImproperlyConfigured`` where
    text has to be derived and the extra ``templates`` is not installed; and whatever the templates
    raise.
    """
    if context is not None and not isinstance(context, Mapping):
        raise TypeError(f"context must be a dict of what the template uses; it is {context!r}.")
    templates = _select(_names(template_name), using)
    # Each template gets a dict of its own, for Django's tags write what they name into it.
    values = context or {}
    with speaking(language):
        subject = templates.subject and _render_plain(templates.subject, dict(values))
        text = templates.text and _render_plain(templates.text, dict(values))
        html = templates.html and _inline_css(_unmarked(templates.html.render(dict(values))))
    return Rendered(
        subject=None if subject is None else " ".join(subject.split()),
        text=_derive_text(html or "", templates.name) if text is None else text,
        html=html,
        name=templates.name,
    )


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
    """Return a context in which lazy text speaks a language of the site's; ``None``: the current.

    Raises ``ValueError`` for a language the site does not have.
    """
    if language is None:
        return nullcontext()
    try:
        code = translation.get_supported_language_variant(language)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"language must be a code of LANGUAGES (of LANGUAGE_CODE where USE_I18N is off); "
            f"it is {language!r}. Add it to the settings, or leave it out to use the current one."
        ) from error
    return translation.override(code)


def _render_plain(template: Any, values: dict[str, Any]) -> str:
    """Render a template as plain text: escaping is set per engine, but belongs to the format."""
    inner: Any = getattr(template, "template", None)
    if isinstance(inner, Template):
        return _unmarked(inner.render(Context(values, autoescape=False)))
    if hasattr(inner, "environment"):
        inner = _unescaped(inner.environment).get_template(inner.name)
        return _unmarked(inner.render(values))
    return _unmarked(template.render(values))


def _unmarked(rendered: str) -> str:
    """Return a plain ``str``: the text of a mail must not count as safe HTML where it is shown."""
    return rendered + ""


@lru_cache(maxsize=8)
def _unescaped(environment: Any) -> Any:
    """Return a Jinja2 environment as the given one, which compiles templates without escaping."""
    return environment.overlay(autoescape=False)


def _inline_css(html: str) -> str:
    """Copy the rules of ``<style>`` into ``style`` attributes, where ``css-inline`` is installed.

    ``<style>`` itself stays, for what cannot be inlined (``@media``, ``:hover``): taking out only
    what was inlined loses ``@media`` in some versions of the library. Nothing is fetched: linked
    stylesheets are left as they are.
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
            f"{name!r} has no template of plain text, and deriving one from the HTML needs what is "
            f'not installed: pip install "django-epica-mail[templates]", or write '
            f"{name.removesuffix('.html')}.txt."
        ) from error
    # As bytes, for a str with an XML declaration is refused; of our encoding, whatever <meta> says.
    parser = lxml_html.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        document = lxml_html.document_fromstring(html.encode(), parser=parser)
    except lxml_html.etree.ParserError:
        return ""  # There is nothing in it.
    _spell_out_links(document)
    # What is centred in a cell of the layout would be centred by spaces.
    lxml_html.etree.strip_attributes(document, "align")
    config = inscriptis.model.config.ParserConfig(
        css=inscriptis.css_profiles.STRICT_CSS_PROFILE, display_images=True
    )
    text = inscriptis.Inscriptis(document, config).get_text()
    # Layout tables come padded to their width, and their gaps as many empty lines.
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"


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
