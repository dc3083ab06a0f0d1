"""Builds a message from the arguments of a call, or from one entry of a bulk call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from django.core.mail import EmailMultiAlternatives

from django_epica_mail.exceptions import as_invalid_message
from django_epica_mail.queueing.rendering import render
from django_epica_mail.routing import Options, check_names

_LISTS = ("recipient_list", "cc", "bcc", "reply_to")
_ANYMAIL = ("tags", "metadata", "track_opens", "track_clicks")
_MESSAGE = ("subject", "message", "from_email", *_LISTS, "html_message", "headers", "attachments")
_TEMPLATE = ("template_name", "context", "language")
_OPTIONS = tuple(item.name for item in fields(Options) if item.name != "template")
KNOWN = tuple(dict.fromkeys((*_MESSAGE, *_TEMPLATE, *_ANYMAIL, *_OPTIONS)))
"""Every name that a call or an entry may use."""


def compose(given: Mapping[str, Any]) -> tuple[EmailMultiAlternatives, Options]:
    """Return the message and the options that named values describe.

    The names in ``given`` are those of ``KNOWN``. With a ``template_name``, the subject and bodies
    come from the template; a ``subject`` overrides the template's own. Raises ``TypeError`` or
    ``ValueError`` naming the value, the rule and the remedy.
    """
    with as_invalid_message("The mail"):
        return _compose(given)


def _compose(given: Mapping[str, Any]) -> tuple[EmailMultiAlternatives, Options]:
    check_names(given, KNOWN)
    for name in _LISTS:
        _check_list(name, given.get(name))
    for name, kind in (("headers", Mapping), ("metadata", Mapping), ("context", Mapping)):
        if given.get(name) is not None and not isinstance(given[name], kind):
            raise TypeError(f"{name} must be a dict; it is {given[name]!r}.")
    with render.speaking(given.get("language")):
        subject, text, html, template = _content(given)
        message = EmailMultiAlternatives(
            subject=str(subject),
            body=str(text),
            from_email=given.get("from_email"),
            to=given.get("recipient_list"),
            cc=given.get("cc"),
            bcc=given.get("bcc"),
            headers=given.get("headers"),
            reply_to=given.get("reply_to"),
        )
        if html:
            message.attach_alternative(str(html), "text/html")
    check_attachments(given.get("attachments"))
    for attachment in given.get("attachments") or ():
        _attach(message, attachment)
    for name in _ANYMAIL:
        if given.get(name) is not None:
            setattr(message, name, given[name])
    return message, options_of(given, template)


def options_of(given: Mapping[str, Any], template: str | None = None) -> Options:
    """Return the checked queue options among named values; those of the message are ignored.

    ``template`` is the name of the template that the message was rendered from.
    """
    named = {name: value for name, value in given.items() if name in _OPTIONS}
    return Options(template=template, **named)


def _content(given: Mapping[str, Any]) -> tuple[object, object, object, str | None]:
    """Return the subject, the text, the HTML and the template's name."""
    name = given.get("template_name")
    if name is None:
        if given.get("context") is not None:
            raise TypeError("context is only for templates: give a template_name too.")
        if given.get("message") is None and given.get("html_message") is None:
            raise TypeError("There is nothing to send: give message, html_message or both.")
        return (
            given.get("subject") or "",
            given.get("message") or "",
            given.get("html_message"),
            None,
        )
    if given.get("message") is not None or given.get("html_message") is not None:
        raise TypeError("Give a template_name, or message and html_message, not both.")
    rendered = render.render(name, given.get("context"))
    subject = given.get("subject") if given.get("subject") is not None else rendered.subject
    if subject is None:
        raise ValueError(
            f"The mail has no subject: give one, or add a _subject.txt template to {rendered.name}."
        )
    return subject, rendered.text, rendered.html, rendered.name


def _check_list(name: str, value: object) -> None:
    if value is not None and (isinstance(value, str) or not isinstance(value, (list, tuple))):
        raise TypeError(f"{name} must be a list of addresses; it is {value!r}.")


def check_attachments(value: object) -> None:
    """Raise ``TypeError`` for attachments that are not a list: of a string, each letter is one."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise TypeError(f"attachments must be a list; it is {type(value).__name__}.")


def _attach(message: EmailMultiAlternatives, attachment: Any) -> None:
    """Attach what Django accepts: a path, ``(filename, content[, mimetype])`` or a MIME part."""
    if isinstance(attachment, (str, Path)):
        message.attach_file(attachment)  # type: ignore[arg-type]
    elif isinstance(attachment, (list, tuple)):
        message.attach(*attachment)
    else:
        message.attach(attachment)
