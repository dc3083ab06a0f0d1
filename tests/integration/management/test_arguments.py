"""Which actions ``manage.py epica_mail`` has, and what each accepts."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest

from django_epica_mail.management import arguments
from django_epica_mail.management.commands.epica_mail import Command


def parser() -> ArgumentParser:
    made = ArgumentParser()
    arguments.add_actions(made)
    return made


def test_every_action_has_a_handler_and_prints_json() -> None:
    (actions,) = (it for it in parser()._actions if it.dest == "action")
    for name, action in actions.choices.items():
        method = {"import": "import_"}.get(name, name.replace("-", "_"))
        assert callable(getattr(Command, method)), name
        assert "--json" in action.format_help()


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["cancel", "no-id"],
        ["pause"],
        ["pause", "--queue", "a", "--transport", "b"],
        ["move", "--transport", "a"],
        ["import", "--from", "nowhere"],
    ],
)
def test_what_cannot_be_meant_is_refused(line: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(line)
    assert "usage:" in capsys.readouterr().err
