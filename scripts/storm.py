"""Kill minigpt at random moments, give the command again, and compare the end bit by bit.

    python scripts/storm.py --kills 200                     # every kind; a table at the end
    python scripts/storm.py --kills 20 --only run,sweep     # these kinds
    python scripts/storm.py --only damage --damages 20      # no kills: damaged files of a run
    python scripts/storm.py --kills 200 --out table.md      # also write the table

A trial starts a command in a new folder, and kills it by SIGKILL at a random moment of the time
that it takes in full: all of its processes, or one of them. Then it gives the command again, or
`resume=` where a run can be resumed, and kills that too, up to three times. In the end the files
must equal those of a command that nobody killed: weights, optimizer, random generators, metrics
(without times), samples, exported files, shards. No traceback may be printed, and no process may
remain.

`damage` truncates files of a run, or flips one bit, and lets minigpt read them: every command must
succeed with the losses of the undamaged run, or fail with one line.

A trial that fails prints what differed and keeps its folder. Needs Linux: it finds processes in
/proc.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import importlib.util
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MOST_KILLS = 3  # of one trial
BUSY = ("another process is training this run", "another minigpt tune is running there")
BUSY_SECONDS, REMAIN_SECONDS = 60.0, 30.0
TIMES = {
    *("seconds", "step_seconds", "tokens_per_second", "peak_memory_bytes", "collective_share"),
    *("tokens_per_second_per_process", "peak_memory_bytes_by_rank"),
}
LINE = "Line {0}: the quick brown fox jumps over {1} lazy dogs.\n"
SHORT, LONG = 60, 40_000  # lines of a text
TINY = (
    *("logger=none", "data=text", "data.path=text.txt", "model.n_layer=1", "model.n_head=2"),
    *("model.n_embd=16", "model.block_size=8", "trainer.batch_size=4", "trainer.device=cpu"),
    *("trainer.threads=1", "schedule.warmup_steps=3", "trainer.sample_tokens=5"),
    *("trainer.log_every=2", "model.dropout=0.1"),
)
# Checkpoints are written often, so that many kills hit one.
OFTEN = ("trainer.checkpoint_every=3", "trainer.eval_every=7", "trainer.sample_every=20")
TWO = ("trainer.parallel=ddp", "trainer.processes=2")
GRID = ("--search", "grid", "--scheduler", "none", "--jobs", "1", "--dir", "search")
SUBREAPER = 36  # of prctl: orphans become children of this process, which can find them

State = dict[str, Any]  # what must be equal in the end, by file


@dataclass(frozen=True)
class Kind:
    """A command to kill, and what must be equal in the end.

    `resume`: the command once run/config.yaml exists, from when on the run can be resumed. `done`:
    what the command says if it ended before it was killed. `package`: what it needs.
    """

    arguments: tuple[str, ...]
    state: Callable[[Path], State]
    resume: tuple[str, ...] | None = None
    done: str | None = None
    lines: int = SHORT
    first: tuple[str, ...] | None = None  # a command that makes what this one reads
    package: str | None = None

    def command(self, folder: Path) -> tuple[str, ...]:
        """Return what a user gives now."""
        is_begun = self.resume is not None and (folder / "run" / "config.yaml").exists()
        return self.resume if is_begun and self.resume is not None else self.arguments


@dataclass
class Row:
    """A line of the table: what was tried, and what ended as it should."""

    name: str
    trials: int = 0
    kills: dict[str, int] = field(default_factory=lambda: {"all": 0, "one": 0})
    survived: int = 0  # kills in trials that ended as the reference
    note: str = ""


@dataclass
class Reference:
    """The end of a command that nobody killed, and the seconds that it takes in full."""

    state: State
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a command ended. `killed`: all, one, or None if it ended before."""

    code: int
    killed: str | None
    errors: str


class StillRuns(TimeoutError):
    """A command has not ended long after one of its processes was killed."""


# ---- what is compared ----


def runs_below(folder: Path) -> State:
    """Return all that must be equal of the runs below a folder."""
    state: State = {}
    for config in sorted(folder.rglob("config.yaml")):
        for name, value in run_state(config.parent).items():
            state[f"{config.parent.relative_to(folder)}/{name}"] = value
    return state


def run_state(run: Path) -> State:
    """Return all that must be equal of a run: everything but times, memory and its history."""
    import torch
    import yaml

    from minigpt.files import read_json, sha256_of_file

    state: State = {"config.yaml": yaml.safe_load((run / "config.yaml").read_text())}
    for name in ("tokenizer.json", "samples.txt", *("checkpoints/last/model.safetensors",)):
        state[name] = sha256_of_file(run / name)
    for name in ("checkpoints/best/model.safetensors", "checkpoints/best/info.json"):
        state[name] = sha256_of_file(run / name)
    training = torch.load(run / "checkpoints/last/training.pt", weights_only=True)
    del training["state"]["log_sizes"]  # lines with times differ in length
    state["checkpoints/last/training.pt"] = plain(training)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    state["metrics.jsonl"] = [plain(json.loads(line)) for line in lines]
    state["result.json"] = plain(read_json(run / "result.json"))
    return state


def search_state(folder: Path) -> State:
    """Return what must be equal of a search: its trials, and the best of them."""
    import yaml

    found = json.loads((folder / "search" / "tune.json").read_text())
    best = yaml.safe_load((folder / "search" / "best.yaml").read_text())
    trials = {one["name"]: [one["status"], one.get("val_loss")] for one in found["trials"]}
    return {**runs_below(folder), "tune.json": [found["status"], trials], "best.yaml": best}


def files_below(name: str) -> Callable[[Path], State]:
    """Return a function that digests the files in a folder, but not hidden ones.

    A writer that is killed may leave its temporary file, which has a hidden name.
    """

    def state(folder: Path) -> State:
        from minigpt.files import sha256_of_file

        files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        shown = [file.relative_to(folder) for file in files]
        return {
            str(file): sha256_of_file(folder / file)
            for file in shown
            if not any(part.startswith(".") for part in file.parts)
        }

    return state


def cached_state(folder: Path) -> State:
    """Return what must be equal of the cache: tokens with their facts, and the tokenizer.

    The order of the facts in a file may differ.
    """
    from safetensors import safe_open

    state = files_below("data")(folder)
    for name in (name for name in state if name.endswith(".safetensors")):
        with safe_open(folder / name, framework="pt") as file:
            tensors = {key: plain(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            state[name] = [file.metadata(), tensors]
    return state


def plain(value: Any) -> Any:
    """Return nested values with digests in place of tensors, and without times."""
    import torch

    from minigpt.files import sha256

    if isinstance(value, torch.Tensor):
        content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {sha256(content)}"
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(expected: Any, actual: Any, where: str = "") -> Iterator[str]:
    """Yield a line for each value that differs."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in sorted({*expected, *actual}, key=str):
            missing = "missing"
            pair = (expected.get(key, missing), actual.get(key, missing))
            yield from differences(*pair, where=f"{where}: {key}" if where else str(key))
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for number, pair in enumerate(zip(expected, actual, strict=True)):
            yield from differences(*pair, where=f"{where}[{number}]")
    elif expected != actual:
        yield f"{where}: {str(actual)[:80]} instead of {str(expected)[:80]}"


KINDS = {
    "run": Kind(
        ("train", *TINY, *OFTEN, "trainer.max_steps=250", "hydra.run.dir=run"),
        runs_below,
        resume=("train", "resume=run"),
        done="has finished",
    ),
    "sweep": Kind(
        ("train", "-m", *TINY, *OFTEN, "trainer.max_steps=100", "seed=1,2", "hydra.sweep.dir=s"),
        runs_below,
    ),
    "search": Kind(
        ("tune", *TINY, *OFTEN, "trainer.max_steps=80", "optimizer.lr=1e-3,4e-3", *GRID),
        search_state,
        package="ray",
    ),
    "processes": Kind(
        ("train", *TINY, *OFTEN, *TWO, "trainer.max_steps=100", "hydra.run.dir=run"),
        runs_below,
        resume=("train", "resume=run"),
        done="has finished",
    ),
    "export": Kind(
        ("export", "trained", "--to", "hf", "exported"),
        files_below("exported"),
        done="is not empty",
        first=("train", *TINY, "model=gpt2", "trainer.max_steps=10", "hydra.run.dir=trained"),
        package="transformers",
    ),
    "shards": Kind(
        *(
            ("data", "--shards", "shards", *TINY[1:3], "tokenizer=bpe", "tokenizer.vocab_size=400"),
            files_below("shards"),
        ),
        done="already exists",
        lines=LONG,
    ),
    "cache": Kind(
        ("data", *TINY[1:3], "tokenizer=bpe", "tokenizer.vocab_size=400"),
        cached_state,
        lines=LONG,
    ),
}
DAMAGE = "damage"


def main() -> int:
    """Print a table of what was tried and what survived; exit 1 if anything did not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=70, help="in all, shared by the kinds")
    parser.add_argument("--damages", type=int, default=20, help="of each file of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, processes and bits")
    known = (*KINDS, DAMAGE)
    parser.add_argument("--only", metavar="KIND,...", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    names = known if options.only is None else options.only.split(",")
    unknown = {*names} - {*known}
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    root = Path(tempfile.mkdtemp(prefix="storm_"))
    storm = Storm(root, options.seed, options.out)
    killed = [name for name in names if name in KINDS]
    tables = [kill_table(storm.kills(killed, options.kills))] if killed else []
    if DAMAGE in names:
        tables.append(damage_table(storm.damages(options.damages)))
    print("\n".join(tables))
    storm.write("\n".join(tables))
    if storm.failed:
        print(f"{storm.failed} trials failed; their folders are in {root}")
        return 1
    shutil.rmtree(root)
    return 0


def kill_table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of the kills."""
    lines = [
        "| kind | trials | kills of all processes | kills of one process | survived |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        n = sum(row.kills.values())
        survived = row.note or f"{row.survived} of {n}"
        cells = [row.name, row.trials, row.kills["all"], row.kills["one"], survived]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def damage_table(rows: Sequence[Row]) -> str:
    """Return the Markdown table of the damaged files."""
    lines = ["| damaged file | read | survived |", "| --- | ---: | ---: |"]
    names = [row.name.removeprefix(f"{SWEPT}/") for row in rows]
    cells = zip(names, rows, strict=True)
    lines += [f"| {name} | {row.trials} | {row.survived} |" for name, row in cells]
    return "\n".join([*lines, ""])


# ---- kills ----


@dataclass
class Storm:
    """Trials in folders below `root`."""

    root: Path
    seed: int
    out: Path | None = None
    failed: int = 0

    def write(self, table: str) -> None:
        """Write what is known so far."""
        if self.out is not None:
            self.out.write_text(table)

    def kills(self, names: Sequence[str], total: int) -> list[Row]:
        """Return a row for each kind, after about as many kills of each."""
        from minigpt.console import Progress

        rows = {name: Row(name) for name in names}
        generators = {name: random.Random(f"{self.seed} {name}") for name in names}
        references: dict[str, Reference] = {}
        left = {
            name: total // len(names) + (n < total % len(names)) for n, name in enumerate(names)
        }
        with Progress("references", total=total) as progress:
            for name in names:
                kind = KINDS[name]
                if kind.package is not None and importlib.util.find_spec(kind.package) is None:
                    rows[name].note = f"left out: {kind.package} is not installed"
                    left[name] = 0
                elif left[name]:
                    progress.activity = f"reference of {name}"
                    references[name] = self.reference(name)
            for number in itertools.count():
                if not any(left.values()):
                    return list(rows.values())
                for name in (name for name in names if left[name] > 0):
                    done = progress.done
                    progress.activity = f"{name}, {done:.0f} of {total} kills"
                    most = min(MOST_KILLS, left[name])
                    kills = self.trial(name, number, most, references[name], generators[name])
                    rows[name].trials += 1
                    for killed in kills.made:
                        rows[name].kills[killed] += 1
                    left[name] -= len(kills.made)
                    progress.advance(len(kills.made))
                    if kills.problems:
                        self.report(f"{name} {number}", kills.problems, kills.folder)
                    else:
                        rows[name].survived += len(kills.made)
                        shutil.rmtree(kills.folder)
                    self.write(kill_table(list(rows.values())))
        raise AssertionError

    def reference(self, name: str) -> Reference:
        """Return the end of the uninterrupted command, and the seconds that it took."""
        kind, folder = KINDS[name], self.folder(name, "reference")
        started = time.monotonic()
        ended = attempt(kind.arguments, folder)
        seconds = time.monotonic() - started
        assert ended.code == 0, f"{name}: exit code {ended.code}\n{ended.errors}"
        return Reference(kind.state(folder), seconds)

    def folder(self, name: str, label: str) -> Path:
        """Return a new folder with what a command reads."""
        kind, folder = KINDS[name], self.root / f"{name}_{label}"
        folder.mkdir()
        text = "".join(LINE.format(n, n * n) for n in range(kind.lines))
        (folder / "text.txt").write_text(text)
        if kind.first is not None:
            made = self.root / f"{name}_first"
            if not made.exists():
                made.mkdir()
                (made / "text.txt").write_text(text)
                ended = attempt(kind.first, made)
                assert ended.code == 0, ended.errors
            shutil.copytree(made, folder, dirs_exist_ok=True)
        return folder

    def trial(
        self,
        name: str,
        number: int,
        most: int,
        reference: Reference,
        generator: random.Random,
    ) -> Kills:
        """Kill a command one to `most` times, let it end, and compare."""
        kind = KINDS[name]
        kills = Kills(self.folder(name, f"{number:03}"), generator.randint(1, most))
        busy_since: float | None = None
        try:
            while True:
                is_last = len(kills.made) == kills.planned
                moment = None if is_last else generator.uniform(0, reference.seconds)
                which = generator.choice(("all", "one"))
                limit = 60 + 20 * reference.seconds
                started = time.monotonic()
                ended = attempt(
                    *(kind.command(kills.folder), kills.folder),
                    *(moment, which, generator, limit),
                )
                kills.log.append(f"{moment or limit:.2f} s: {ended}")
                if ended.code == 0 and not kills.log[1:]:  # faster than any whole command before
                    reference.seconds = min(reference.seconds, time.monotonic() - started)
                if "Traceback" in ended.errors:
                    kills.problems.append(f"a traceback:\n{ended.errors}")
                    break
                if ended.killed is not None:
                    kills.made.append(ended.killed)
                if ended.code == 0 or (kind.done is not None and kind.done in ended.errors):
                    break
                if any(text in ended.errors for text in BUSY):  # as it says: wait
                    busy_since = busy_since or time.monotonic()
                    if time.monotonic() - busy_since > BUSY_SECONDS:
                        kills.problems.append(f"busy for {BUSY_SECONDS:g} s")
                        break
                    time.sleep(0.5)
                    continue
                busy_since = None
                if ended.killed is None:
                    kills.problems.append(f"exit code {ended.code}: {ended.errors}")
                    break
            if not kills.problems:
                kills.problems += differences(reference.state, kind.state(kills.folder))
        except StillRuns as error:
            kills.made.append("one")
            kills.problems.append(str(error))
        except Exception as error:  # a file that is missing or cannot be read
            kills.problems.append(f"{type(error).__name__}: {error}")
        kills.problems += end_processes()
        if kills.problems:
            kills.problems += kills.log
        return kills

    def report(self, what: str, problems: Sequence[str], folder: Path) -> None:
        """Print what differs in a trial that failed."""
        self.failed += 1
        shown = "\n  ".join(problems[:20])
        print(f"FAILED {what} (seed {self.seed}), in {folder}:\n  {shown}", flush=True)

    # ---- damage ----

    def damages(self, n: int) -> list[Row]:
        """Return a row for each file of a run, after `n` damages that every command read."""
        from minigpt.console import Progress

        whole = self.root / "whole"
        whole.mkdir()
        (whole / "text.txt").write_text("".join(LINE.format(i, i * i) for i in range(SHORT)))
        options = (*TINY, "trainer.max_steps=12", "trainer.eval_every=4", "seed=1,2")
        with working_in(whole):
            command = ("train", "-m", *options, "hydra.sweep.dir=sweep", "hydra/launcher=basic")
            done = minigpt(*command)
        assert done.code == 0, done.err
        expected = {name: read(whole, self.root, arguments) for name, arguments in READ.items()}
        assert all(one.code == 0 for one in expected.values()), expected
        results = [json.loads(path.read_text()) for path in whole.rglob("result.json")]
        # Without a manifest, a report does not know that the tokenizer is the same.
        both = frozenset(str(r[k]) for r in results for k in ("val_loss", "val_bits_per_byte"))
        expected["report"] = replace(expected["report"], losses=both)
        rows = []
        with Progress("damage", total=len(DAMAGED) * n * len(READ)) as progress:
            for file in DAMAGED:
                progress.activity = f"damaged {file}"
                rows.append(Row(file))
                generator = random.Random(f"{self.seed} {file}")
                for number in range(n):
                    content = (whole / file).read_bytes()
                    damaged, how = damage(content, generator, truncated=number % 2 == 0)
                    for name, arguments in READ.items():
                        found = read(whole, self.root, arguments, {file: damaged})
                        problems = wrong(found, expected[name])
                        rows[-1].trials += 1
                        rows[-1].survived += not problems
                        if problems:
                            self.report(f"{file}, {how}: {name}", problems, whole)
                        progress.advance()
        return rows


@dataclass
class Kills:
    """A trial: the kills that were made, and what went wrong."""

    folder: Path
    planned: int
    made: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def attempt(
    arguments: Sequence[str],
    folder: Path,
    moment: float | None = None,
    which: str = "all",
    generator: random.Random | None = None,
    limit: float = 600.0,
) -> Ended:
    """Run a command in a folder, and kill `which` of its processes after `moment` seconds.

    The command ends, also those of its processes that were not killed, if it is not killed itself.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MINIGPT_", "WANDB_"))}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    errors = folder.with_suffix(".stderr")
    with errors.open("w") as err, folder.with_suffix(".stdout").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "minigpt", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        killed = None
        try:
            code = process.wait(limit if moment is None else moment)
        except subprocess.TimeoutExpired:
            chosen = members(process.pid)
            if which == "one" and generator is not None and moment is not None:
                chosen = [generator.choice([pid for pid in chosen if not is_helper(pid)])]
            for pid in chosen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = which
            if moment is None:
                raise TimeoutError(
                    f"{' '.join(arguments)}: has not ended after {limit:g} s"
                ) from None
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise StillRuns(f"still runs {limit:g} s after one process was killed") from None
    return Ended(code, killed, errors.read_text())


def members(pid: int) -> list[int]:
    """Return a process and all below it that have not ended."""
    below: dict[int, list[int]] = {}
    ended = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            status, parent = file.read_text().rpartition(")")[2].split()[:2]
            below.setdefault(int(parent), []).append(int(file.parent.name))
            if status == "Z":
                ended.add(int(file.parent.name))
    found = [pid]
    for one in found:
        found += below.get(one, [])
    return [one for one in found if one not in ended]


def is_helper(pid: int) -> bool:
    """Return whether a process is not killed alone.

    Python's resource tracker prints tracebacks of its own, and Python starts another one. Without
    one of Ray's servers and agents, Ray waits for minutes; its workers, which train, are killed.
    """
    command = command_of(pid)
    is_of_ray = b"/ray/" in command or command.startswith(b"ray::")
    is_worker = b"default_worker.py" in command or command.startswith((b"ray::IDLE", b"ray::Trial"))
    return b"resource_tracker" in command or (is_of_ray and not is_worker)


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def end_processes() -> list[str]:
    """Wait until all processes below this one have ended. Return a line for each that remains.

    Those are killed.
    """
    deadline = time.monotonic() + REMAIN_SECONDS
    while (rest := members(os.getpid())[1:]) and time.monotonic() < deadline:
        time.sleep(0.1)
    problems = []
    for pid in rest:
        with contextlib.suppress(OSError):
            command = command_of(pid).decode(errors="replace")[:100]
            problems.append(f"remains after {REMAIN_SECONDS:g} s: {command}")
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return problems


# ---- damage ----


SWEPT = "sweep/seed=1"
READ = {
    "resume": ("train", f"resume={SWEPT}", "trainer.max_steps=16"),
    "eval": ("eval", SWEPT),
    "sample": ("sample", SWEPT, "--max-new-tokens", "20"),
    "report": ("report", "sweep"),
    "runs": ("runs", "sweep", "--json"),
}
DAMAGED = (
    *(f"{SWEPT}/{name}" for name in ("config.yaml", "manifest.json", "metrics.jsonl")),
    *(f"{SWEPT}/{name}" for name in ("result.json", "tokenizer.json")),
    *(f"{SWEPT}/checkpoints/last/{name}" for name in ("model.safetensors", "training.pt")),
    f"{SWEPT}/checkpoints/last/checksums.json",
    *(f"{SWEPT}/checkpoints/best/{name}" for name in ("model.safetensors", "info.json")),
    f"{SWEPT}/checkpoints/best/checksums.json",
    "sweep/sweep.json",
)
LOSS = re.compile(r"\b\d+\.\d{3,}\b")


@dataclass(frozen=True)
class Done:
    """How a command in this process ended, and the losses that it gave."""

    code: int | str
    out: str
    err: str
    losses: frozenset[str] = frozenset()


def damage(content: bytes, generator: random.Random, truncated: bool) -> tuple[bytes, str]:
    """Return a file's content truncated, or with one bit flipped, and what was done."""
    place = generator.randrange(len(content))
    if truncated:
        return content[:place], f"truncated after {place} bytes"
    changed, bit = bytearray(content), generator.randrange(8)
    changed[place] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {place} flipped"


def read(
    whole: Path, root: Path, arguments: Sequence[str], damaged: dict[str, bytes] | None = None
) -> Done:
    """Run a command on a copy of a sweep in which files are damaged."""
    folder = root / "damaged"
    shutil.copytree(whole, folder)
    for name, content in (damaged or {}).items():
        (folder / name).write_bytes(content)
    try:
        with working_in(folder):
            done = minigpt(*arguments)
            losses = frozenset(LOSS.findall(done.out))
            if arguments[0] == "train" and done.code == 0:
                result = json.loads(Path(SWEPT, "result.json").read_text())
                names = ("train_loss", "val_loss", "best_val_loss")
                losses = frozenset(f"{name} {result[name]}" for name in names)
            if arguments[0] == "runs" and done.code == 0:
                losses = frozenset(str(row["val_loss"]) for row in json.loads(done.out))
            if arguments[0] == "report" and done.code == 0:
                with Path("sweep", "report_runs.csv").open(newline="") as file:
                    rows = list(csv.DictReader(file))
                named = (cell for row in rows for cell in row.items())
                losses = frozenset(v for k, v in named if k.startswith("val_") and v)
            if arguments[0] == "sample":
                losses = frozenset([done.out])
            return Done(done.code, done.out, done.err, losses)
    finally:
        shutil.rmtree(folder)


def wrong(found: Done, expected: Done) -> list[str]:
    """Return what is wrong with the end of a command that read a damaged file."""
    if found.code in (1, 2):
        one_line = found.err.count("\n") == 1 and found.err.startswith("minigpt: ")
        return [] if one_line else [f"not one line: {found.err}"]
    if found.code != 0:
        return [f"{found.code}: {found.err}"]
    others = found.losses - expected.losses - {"None"}
    return [f"printed {sorted(others)} instead of {sorted(expected.losses)}"] if others else []


def minigpt(*arguments: str) -> Done:
    """Run a command in this process. An exception that it does not handle is its code."""
    from minigpt.cli import main as run

    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["minigpt", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: int | str = run(list(arguments))
    except (Exception, SystemExit) as error:
        code = f"{type(error).__name__}: {error}"
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change to a folder while the block runs; data is cached there."""
    with contextlib.chdir(folder):
        before = os.environ.pop("MINIGPT_DATA", None)
        try:
            yield
        finally:
            if before is not None:
                os.environ["MINIGPT_DATA"] = before


if __name__ == "__main__":
    # Import this tree's package, and no file beside this one instead of the standard library's.
    sys.path[0] = str(REPOSITORY)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
