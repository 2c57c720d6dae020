"""What is printed cannot steer the terminal, holds no secrets, and reads well."""

from __future__ import annotations

import pytest

from remote_trainer.cli import out
from remote_trainer.cli.lines import Lines, last_lines
from remote_trainer.cli.live import Pace
from remote_trainer.redact import hide


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hgone?", "gone?"),
        ("\x1b]0;new title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x1b]52;c;aGk=\x07", ""),
        ("\x1bP1$r0m\x1b\\after", "after"),
        ("\x9b31mC1", "C1"),
        ("\x1bcreset", "reset"),
        ("bell\x07 back\x08space\x7f", "bell backspace"),
        ("safe\u202egnp.exe", "safegnp.exe"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
        ("\x1b", ""),
        ("\x1b[", ""),
    ],
)
def test_terminal_control_is_taken_out(hostile: str, harmless: str) -> None:
    """Escape sequences, control characters and marks that reorder text never reach a terminal; all other text does."""
    assert out.clean(hostile) == harmless


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A secret that was read is hidden from words, errors and documents, but not from data that is exported."""
    hide("correct-horse")
    out.line("the password is correct-horse")
    out.problem("correct-horse was refused")
    out.document({"password": "correct-horse"})
    shown = capsys.readouterr()
    assert "correct-horse" not in shown.out + shown.err


def test_tables_are_as_wide_as_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns line up, and a newline in a cell does not break its row."""
    out.table(("a", "long head"), [("wide cell", "x\ny"), ("b", "")])
    assert capsys.readouterr().out == "a          long head\nwide cell  x y\nb\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 kB"),
        (99_960, "100 kB"),
        (2_500_000, "2.5 MB"),
        (3 * 10**12, "3.0 TB"),
    ],
)
def test_sizes_read_well(count: int | None, text: str) -> None:
    """Sizes have two or three digits and a unit."""
    assert out.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0.0 s"), (4.24, "4.2 s"), (59.99, "60.0 s"), (187, "3:07"), (7439, "2:03:59")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Durations are seconds, minutes or hours."""
    assert out.duration(seconds) == text


def test_lines_leave_out_what_was_overwritten() -> None:
    """Of a progress bar drawn with carriage returns only the newest text counts, however its bytes come."""
    text = b"first\r\n 1%\r 50%\r100%\nlast"
    for size in range(1, len(text)):
        lines = Lines()
        found = [line for start in range(0, len(text), size) for line in lines.feed(text[start : start + size])]
        assert (found, lines.unfinished) == (["first", "100%"], "last")


def test_unfinished_lines_show_their_newest_text() -> None:
    """A bar that is still being drawn shows its newest state."""
    lines = Lines()
    assert lines.feed(b" 1%\r 2%\r 3%\r") == []
    assert lines.unfinished == " 3%"


def test_endless_lines_are_bounded() -> None:
    """A line without end is not kept whole."""
    lines = Lines()
    for _ in range(10):
        lines.feed(b"x" * 100_000)
    assert len(lines.unfinished) == 16 * 1024


def test_the_last_lines_are_those_with_text() -> None:
    """Empty lines do not push the telling ones out; broken UTF-8 is shown as such."""
    assert last_lines(b"one\n\ntwo\n\xff\n\n\nthree", 3) == ["two", "\ufffd", "three"]


def test_pace_is_that_of_the_last_half_minute() -> None:
    """Speed comes from steps seen lately, and begins anew with another run."""
    pace = Pace()
    assert pace.per_s is None
    for second in range(100):
        pace.note(second * (1 if second < 50 else 2), float(second))
    assert pace.per_s == pytest.approx(2.0)
    pace.note(0, 101.0)
    assert pace.per_s is None
