"""Long work shows its progress on a terminal, and nowhere else."""

from __future__ import annotations

from io import StringIO

from django.core.management.base import OutputWrapper

from django_epica_mail.management import output


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: StringIO, total: int) -> str:
    advance = output.progress(OutputWrapper(stream), "searching")
    for done in range(1, total + 1):
        advance(done, total)
    return stream.getvalue()


def test_a_bar_grows_to_its_end() -> None:
    lines = shown(Terminal(), 4).split("\r")
    assert lines[1] == f"searching [{'#' * 7:<30}]  25 % of 4"
    assert lines[-1] == f"searching [{'#' * 30}] 100 % of 4\n"


def test_it_is_drawn_at_most_a_hundred_times() -> None:
    assert shown(Terminal(), 5000).count("\r") <= 101


def test_nothing_is_drawn_without_a_terminal() -> None:
    assert shown(StringIO(), 4) == ""


ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r\n\ud800\x7f"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_foreign_text_never_reaches_a_terminal_as_it_is() -> None:
    assert output.clean(ESCAPES).startswith("\\x1b]0;owned\\x07")
    lines = [
        *output.table_lines(("a", "b"), [[ESCAPES, 1]]),
        *output.pair_lines({"text": ESCAPES, "dict": {ESCAPES: 1}, "list": [ESCAPES]}),
        *output.import_lines(
            {"dry_run": True, "refused": [{"row": ESCAPES, "reason": ESCAPES}]}
            | dict.fromkeys(("queued", "finished", "listed", "already"), 0)
        ),
    ]
    assert all(map(is_harmless, lines))
    terminal = Terminal()
    output.CleanLines(terminal).write(f"Şişli{ESCAPES}")
    assert is_harmless(terminal.getvalue().replace("\r\n", "\n"))
    assert terminal.getvalue().startswith("Şişli")
