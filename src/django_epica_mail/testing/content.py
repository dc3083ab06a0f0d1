"""Assertions about what a mail's templates make, in every language of the site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from django_epica_mail import conf
from django_epica_mail.queueing.rendering import samples
from django_epica_mail.queueing.rendering.render import Rendered, raw_subject, render, speaking
from django_epica_mail.testing.lint import LEFT_OVER
from django_epica_mail.testing.snapshots import assert_mail_snapshot

Sample: TypeAlias = "Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None"

_PARTS = ("subject", "text", "html")


def assert_mail_renders(
    template_name: str,
    context: Sample = None,
    *,
    languages: Iterable[str] | None = None,
    parts: Iterable[str] = _PARTS,
    optional: Iterable[str] = (),
    snapshots: str | Path | None = None,
    mask: Mapping[str, str] | None = None,
) -> dict[str, Rendered]:
    """Assert that a mail's templates render in each language; return the mails by language.

    ``template_name`` is as in ``send_templated_email_async``. ``context`` is a dict of the
    template's variables, or a function that returns one and is called in each language; without it,
    the sample context in ``EPICA_MAIL["PREVIEWS"]``. ``languages`` are codes from ``LANGUAGES``, by
    default all of them (``LANGUAGE_CODE`` if ``LANGUAGES`` is not set).

    In each language, every one of ``parts`` ("subject", "text", "html") must be there and not be
    empty, the subject must be one line, no ``{{``, ``{%`` or ``%(name)s`` may be left, and no
    variable may be missing, except what the ``optional`` ones are named and what ``{% if %}`` and
    ``{% for %}`` ask about.

    ``snapshots`` is a folder: each mail is also compared with the file
    ``<template_name>.<language>.txt`` in it, as by ``assert_mail_snapshot``, which takes ``mask``.

    Raises ``AssertionError``, which lists what is wrong in all languages; ``ValueError`` for an
    unknown part or language, or if there is no context.
    """
    parts, optional = tuple(parts), frozenset(optional)
    if unknown := [it for it in parts if it not in _PARTS]:
        raise ValueError(f"parts may be {', '.join(_PARTS)}; you gave {unknown[0]!r}.")
    if context is None and template_name not in conf.get().previews:
        raise ValueError(
            f"There is no sample context for {template_name!r}: give context, or add the template "
            "to EPICA_MAIL['PREVIEWS']."
        )
    codes = samples.languages() if languages is None else list(languages)
    if not codes:
        raise ValueError("languages is empty: name at least one, or leave it out for all.")
    mails: dict[str, Rendered] = {}
    problems: list[str] = []
    cause: Exception | None = None
    for code in codes:
        with speaking(code):
            try:
                values = _values(template_name, context)
                mails[code] = mail = render(template_name, values)
                found = list(_problems(template_name, values, mail, parts, optional))
            except Exception as error:  # noqa: BLE001 - whatever a template raises is a finding
                cause, found = error, [f"{type(error).__name__}: {error}"]
        problems += (f"  {code}: {it}" for it in found)
    if problems:
        listed = "\n".join(problems)
        raise AssertionError(f"The mail {template_name!r} is not as it should be:\n{listed}") from (
            cause
        )
    if snapshots is not None:
        for code, mail in mails.items():
            name = f"{samples.base_name(template_name)}.{code}.txt"
            assert_mail_snapshot(mail, Path(snapshots) / name, mask=mask)
    return mails


def _values(template_name: str, context: Sample) -> Mapping[str, Any]:
    if context is None:
        return samples.context_of(template_name)
    return context() if callable(context) else context


def _problems(
    template_name: str,
    values: Mapping[str, Any],
    mail: Rendered,
    parts: tuple[str, ...],
    optional: frozenset[str],
) -> Iterator[str]:
    for part in _PARTS:
        content = getattr(mail, part)
        if part in parts and not (content or "").strip():
            yield f"The {part} is {'missing' if content is None else 'empty'}."
        for mark in dict.fromkeys(LEFT_OVER.findall(content or "")):
            yield f"The {part} still contains {mark!r}, which no template has replaced."
    lines = (raw_subject(template_name, values) or "").strip().splitlines()
    if len(lines) > 1:
        yield f"The subject has {len(lines)} lines; the second is {lines[1]!r}."
    for name in samples.missing_variables(template_name, values):
        if name not in optional:
            yield f"The variable {name!r} is missing: add it to the context, or to optional."
