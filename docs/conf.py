"""How the pages of this folder become a site: ``tox run -e docs``."""

from importlib.metadata import version as installed_version
from inspect import isclass
from typing import Any

import django
from django.conf import settings
from django.db.models import Model
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

# Enough of a site for the docstrings of models and tasks to be read.
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_epica_mail"],
    USE_TZ=True,
)
django.setup()

project = "django-epica-mail"
copyright = "the authors of django-epica-mail"  # noqa: A001 - Sphinx's own name
release = version = installed_version("django-epica-mail")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "explanation/benchmarks.md"]  # the latter is included in a page

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"django-epica-mail {release}"
html_copy_source = False

# Pages outside are not asked for: the build needs no network.
linkcheck_ignore = [r"https?://"]


def setup(app: Sphinx) -> None:
    """Show diagrams as the text they are, which GitHub draws; list the fields of models."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("autodoc-process-docstring", list_fields)


def list_fields(
    app: Sphinx, what: str, name: str, subject: Any, options: Any, lines: list[str]
) -> None:
    """Add a model's fields to its docstring, with their names for people."""
    if isclass(subject) and issubclass(subject, Model):
        lines.append("")
        for field in subject._meta.concrete_fields:
            null = ", or ``NULL``" if field.null else ""
            kind = type(field).__name__
            lines.append(f":param {field.name}: {field.verbose_name} (``{kind}``{null})")
