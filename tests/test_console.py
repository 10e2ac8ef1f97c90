"""Lines and bars that show progress."""

from __future__ import annotations

import io
import re
import time

import pytest
import rich

from minigpt import console
from minigpt.console import LiveView, Progress, duration, interruptible, time_left


def test_no_silence_while_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.2)
    with Progress("counting", total=4) as progress:
        for _ in progress.counted(range(2)):
            time.sleep(0.15)
        time.sleep(0.5)
        assert str(progress).startswith("counting: 50%, 0:0")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("minigpt: counting: ") for line in lines)
    assert lines[-1].startswith("minigpt: counting: 50%, 0:0") and lines[-1].endswith(" left")
    time.sleep(0.3)
    assert capsys.readouterr().err == ""  # nothing after the block


def test_a_short_block_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("counting") as progress:
        assert str(progress) == "counting: 0.0 s"
    assert capsys.readouterr().err == ""


def test_of_nested_blocks_the_innermost_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.1)
    with Progress("outer"):
        assert interruptible(lambda: time.sleep(0.35) or 3, "inner") == 3
        inner = capsys.readouterr().err.splitlines()
        time.sleep(0.35)
    outer = capsys.readouterr().err.splitlines()
    assert inner and all(line.startswith("minigpt: inner: ") for line in inner)
    assert outer and all(line.startswith("minigpt: outer: ") for line in outer)


def test_many_short_blocks_in_a_block_are_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.2)
    with Progress("outer"):
        for _ in range(10):
            with Progress("inner"):
                time.sleep(0.1)
    assert len(capsys.readouterr().err.splitlines()) >= 3


def test_an_error_in_a_thread_is_raised_and_ends_the_block() -> None:
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, "dividing")
    assert Progress._running == []


def test_an_activity_may_have_a_colon(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("C: copying: files", total=4)
    progress.advance()
    rich.print(progress._draw())
    assert re.fullmatch(r"C: copying: files +\S+ +25%, 0:00 left", capsys.readouterr().out.strip())


def test_lines_postpone_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENCE_SECONDS", 0.4)
    stream = io.StringIO()
    with LiveView(lambda: "", status=lambda: "status", stream=stream) as view:
        for _ in range(6):
            view.line("line")
            time.sleep(0.1)
    assert stream.getvalue() == "line\n" * 6


def test_rows_in_a_pipe_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    LiveView(lambda: "").rows([("finished", "[bold] :smile:"), ("run", "x" * 300)])
    expected = "finished   [bold] :smile:\nrun        " + "x" * 300 + "\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("seconds", "left", "text"),
    [
        (4.25, "0:04 left", "4.2 s"),
        (119.0, "1:59 left", "119.0 s"),
        (1051.9, "17:31 left", "17 min 31 s"),
        (7500.0, "2:05:00 left", "2 h 5 min"),
    ],
)
def test_times(seconds: float, left: str, text: str) -> None:
    assert (time_left(seconds), duration(seconds)) == (left, text)
