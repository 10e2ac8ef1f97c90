"""Lines and bars that show progress."""

from __future__ import annotations

import io
import time

import pytest

from minigpt import console
from minigpt.console import LiveView, Progress, duration, time_left


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


def test_skipped_work_does_not_shorten_the_time_left() -> None:
    progress = Progress("counting", total=10)
    progress.skip(8)
    progress.advance()
    assert str(progress).startswith("counting: 50%")


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
