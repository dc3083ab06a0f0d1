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
