"""Programs that a benchmark starts: their errors, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minigpt.bench.programs import running
from minigpt.errors import Failure, UserError
from tests.bench.test_bench import SMALL

MINIGPT = [sys.executable, "-m", "minigpt.cli"]
PROCESSES = Path("/proc")

needs_proc = pytest.mark.skipif(not PROCESSES.is_dir(), reason="reads processes from /proc")


def wait_for(ready: Callable[[], object], seconds: float = 60) -> None:
    """Wait until ready() is true."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


class Started:
    """A benchmark in a process of its own, and all that it starts: they inherit a variable."""

    def __init__(self, *arguments: str) -> None:
        self.mark = f"MINIGPT_TEST={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.temporary = Path("temporary").absolute()
        self.temporary.mkdir()
        environment = os.environ | {name: value, "TMPDIR": str(self.temporary)}
        command = [*MINIGPT, "bench", *arguments]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    def commands(self) -> dict[int, str]:
        """Return the command lines of all its processes that run, by process id."""
        found = {}
        for folder in PROCESSES.glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended, or is another user's
                continue
        return found

    def count(self, text: str) -> int:
        """Return the number of processes with a text in their command line."""
        return sum(text in command for command in self.commands().values())


@pytest.fixture
def start(workdir: Path) -> Iterator[Callable[..., Started]]:
    """Return a function that starts a benchmark; what still runs at the end is killed."""
    all_started: list[Started] = []

    def start(*arguments: str) -> Started:
        all_started.append(Started(*arguments))
        return all_started[-1]

    yield start
    for started in all_started:
        for process in started.commands():
            os.kill(process, signal.SIGKILL)
        started.process.communicate()


BUSY = ["busy", *SMALL, "--competitors", "2", "--steps", "1000000", "--repeats", "1"]
GROWTH = ["growth", "--axes", "depth", "--depth", "1", "--sparse", "--steps", "1000000"]


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("benchmark", "number"),
    [(BUSY, signal.SIGTERM), (BUSY, signal.SIGINT), (GROWTH, signal.SIGHUP)],
    ids=["busy-term", "busy-int", "growth-hup"],
)
def test_a_signal_ends_all_programs(
    start: Callable[..., Started], benchmark: list[str], number: signal.Signals
) -> None:
    started = start(*benchmark)
    if benchmark is BUSY:
        wait_for(lambda: started.count("os.getppid()") == 2 and started.count("cli train"))
        wait_for(lambda: [*started.temporary.glob("minigpt_bench_*/run/metrics.jsonl")])
    else:
        wait_for(lambda: [*started.temporary.glob("minigpt_bench_*/metrics.jsonl")])
    started.process.send_signal(number)
    _, err = started.process.communicate(timeout=30)
    assert started.process.returncode == 128 + number, err
    assert b"Traceback" not in err
    wait_for(lambda: not started.commands(), seconds=5)
    assert [*started.temporary.glob("minigpt_*")] == []


@pytest.mark.slow
@needs_proc
def test_busy_loops_end_with_a_killed_benchmark(start: Callable[..., Started]) -> None:
    started = start(*BUSY)
    wait_for(lambda: started.count("os.getppid()") == 2)
    started.process.kill()
    wait_for(lambda: not started.count("os.getppid()"), seconds=10)


def test_a_program_is_killed_with_all_that_it_started() -> None:
    grandchild = "import time; print('runs', flush=True); time.sleep(600)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines:
        with running([sys.executable, "-c", child], stdout=writer):
            os.close(writer)
            assert lines.readline() == "runs\n"
        assert lines.read() == ""  # nobody has the other end


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("sys.exit('first\\nlast')", Failure, "last"),
        ("print('minigpt: no', file=sys.stderr); sys.exit(2)", UserError, "no"),
        ("sys.exit(3)", Failure, "ended with code 3 and without a message"),
        ("sys.stderr.write('x\\n' * 10**6); sys.exit('last')", Failure, "last"),  # fills a pipe
    ],
)
def test_the_error_of_a_program_is_one_line(
    code: str, error: type[Exception], message: str
) -> None:
    with (
        pytest.raises(error, match=rf"(^|: ){message}$"),
        running([sys.executable, "-c", f"import sys; {code}"]) as process,
    ):
        process.wait(30)
