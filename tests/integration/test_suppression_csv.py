"""The suppression list as CSV: written, read back, and read from other providers."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from django_epica_mail import suppression
from django_epica_mail.models import Suppression
from django_epica_mail.suppression import Reason

pytestmark = pytest.mark.django_db


def exported() -> str:
    file = StringIO(newline="")
    suppression.write_csv(file, Suppression.objects.all())
    return file.getvalue()


def test_an_exported_list_is_imported_unchanged() -> None:
    suppression.add("a@example.com", reason=Reason.BOUNCE, note="said 'no',\nand \"no\"")
    suppression.add("b@example.com", reason=Reason.UNSUBSCRIBE, scope="news")
    suppression.add("erased@example.com")
    Suppression.objects.filter(address="erased@example.com").update(address="")
    fields = ("address", "digest", "scope", "reason", "note", "expires_at")
    before = set(Suppression.objects.values_list(*fields))
    text = exported()
    Suppression.objects.all().delete()
    done = suppression.read_csv(StringIO(text, newline=""))
    assert (done.added, done.known, done.refused) == (3, 0, [])
    assert set(Suppression.objects.values_list(*fields)) == before
    assert suppression.is_suppressed("erased@example.com")
    again = suppression.read_csv(StringIO(text, newline=""))
    assert (again.added, again.known) == (0, 3)


def test_a_formula_is_written_as_text_and_read_back() -> None:
    suppression.add("=1+1@example.com", note="@SUM(A1)")
    text = exported()
    assert "'=1+1@example.com" in text
    assert "'@SUM(A1)" in text
    Suppression.objects.all().delete()
    suppression.read_csv(StringIO(text, newline=""))
    row = Suppression.objects.get()
    assert (row.address, row.note) == ("=1+1@example.com", "@SUM(A1)")


def test_a_providers_file_is_read_and_its_invalid_lines_named() -> None:
    lines = "\ufeffEmail,Reason\nA@example.com,550 no such user\n\nnobody,x\n\x00,x\n"
    done = suppression.read_csv(StringIO(lines))
    assert (done.added, done.known) == (1, 0)
    assert [it["line"] for it in done.refused] == [4, 5]
    row = Suppression.objects.get()
    assert (row.address, row.reason, row.note) == ("a@example.com", "manual", "550 no such user")


@pytest.mark.parametrize("text", ["", "name,reason\n", "a@example.com\n"])
def test_a_file_without_an_address_column_is_refused(text) -> None:
    with pytest.raises(ValueError, match="must name a column 'address'"):
        suppression.read_csv(StringIO(text))


@pytest.mark.parametrize("line", ["a@example.com,soon,", f"a@example.com,,{'x' * 65}"])
def test_an_invalid_time_or_category_is_refused(line) -> None:
    done = suppression.read_csv(StringIO(f"address,expires_at,scope\n{line}\n"))
    assert (done.added, len(done.refused)) == (0, 1)


def test_a_line_that_is_no_csv_is_refused_and_the_others_are_added() -> None:
    lines = ["address,note\n", "a@example.com,x\n", f"b@example.com,{'n' * 200_000}\n"]
    done = suppression.read_csv([*lines, "c@example.com,x\n"])
    assert (done.added, [it["line"] for it in done.refused]) == (2, [3])
    with pytest.raises(ValueError, match="first line"):
        suppression.read_csv([f"address,{'n' * 200_000}\n"])


@pytest.mark.parametrize("at", ["9998-12-31T23:59:59-12:00", "0002-01-01T00:00:00+14:00"])
def test_a_time_that_no_database_stores_is_refused_and_the_others_are_added(at) -> None:
    lines = ["address,expires_at\n", "a@example.com,\n", f"b@example.com,{at}\n"]
    done = suppression.read_csv(lines)
    assert (done.added, [it["line"] for it in done.refused]) == (1, [3])


def test_a_long_file_is_read_in_chunks() -> None:
    lines = ["address\n", *(f"{number}@example.com\n" for number in range(1000))]
    seen: list[int] = []
    done = suppression.read_csv(lines, advance=seen.append)
    assert done.added == 1000
    assert seen == [400, 800, 1000]


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("epica_mail", "suppressions", *arguments, stdout=output)
    return output.getvalue()


def test_the_command_writes_a_file_and_reads_it(tmp_path: Path) -> None:
    suppression.add("a@example.com")
    path = str(tmp_path / "list.csv")
    assert json.loads(run("export", path, "--json")) == {"written": 1}
    Suppression.objects.all().delete()
    report = json.loads(run("import", path, "--json"))
    assert report == {"added": 1, "known": 0, "refused": []}


def test_an_export_to_standard_output_is_nothing_but_csv() -> None:
    suppression.add("a@example.com")
    assert run("export", "-").splitlines()[1].startswith("a@example.com,")
    assert len(run("export", "-", "--json").splitlines()) == 2


def test_the_command_fails_for_a_bad_line_or_a_missing_file(tmp_path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("address\nnobody\na@example.com\n")
    with pytest.raises(SystemExit, match="1"):
        run("import", str(path))
    assert Suppression.objects.count() == 1
    with pytest.raises(CommandError, match="No such file"):
        run("import", str(tmp_path / "other.csv"))
