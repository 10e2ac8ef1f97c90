"""Read trials from their run directories, which are the only state of a search."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minigpt.config.pairs import Values, described_values
from minigpt.errors import UserError
from minigpt.files import read_json_lines
from minigpt.report.runs import read_run
from minigpt.run.directory import RunDirectory

TRIAL = "trial.json"  # in a trial's run directory: its number and values
LABEL_LENGTH = 60


def trial_name(number: int, values: Values, changing: bool) -> str:
    """Return the folder name of a trial: its number, and its values unless they are `changing`."""
    text = "" if changing else described_values(values, "_")
    label = re.sub(r"[^\w.=+-]+", "_", text)[:LABEL_LENGTH].strip("_")
    return f"{number:03d}_{label}" if label else f"{number:03d}"


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `steps` and `seconds` exclude those of runs that it copied."""

    name: str
    number: int
    values: Values
    status: str  # from result.json; `unfinished` if missing; `failed` if it could not start
    step: int  # step of its weights
    steps: int
    seconds: float
    value: float | None  # the metric as `minigpt report` ranks it, or at the last evaluation
    evaluations: dict[int, float] = field(default_factory=dict)  # the metric by step
    adopted: list[dict[str, Any]] = field(default_factory=list)  # runs it copied, with the step
    # The values its weights were trained with, those of the copied runs too: `values` from `step`.
    schedule: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def ended(self, scheduler: str) -> bool:
        """Whether a resumed search skips it. Members of a population are always resumed."""
        ends = ("finished", "failed") if scheduler == "pbt" else ("finished", "failed", "stopped")
        return self.status in ends

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in tune.json."""
        return {k: v for k, v in asdict(self).items() if k not in ("number", "evaluations")}


def read_trials(folder: Path, metric: str) -> list[TrialRecord]:
    """Return the trials in a search's folder by number. Raises UserError for a broken file."""
    records = [_read_trial(path.parent, metric) for path in folder.glob(f"*/{TRIAL}")]
    return sorted(records, key=lambda record: record.number)


def _read_trial(directory: Path, metric: str) -> TrialRecord:
    run = RunDirectory(directory)
    trial = run.read_json(directory / TRIAL)
    if not (isinstance(trial.get("number"), int) and isinstance(trial.get("values"), dict)):
        raise UserError(
            f"{directory / TRIAL}: not written by minigpt tune; restore it or delete the folder"
        )
    result = run.read_optional_json(run.result)
    evaluations = _evaluations(run, metric)
    adopted = trial.get("adopted", [])
    last_step, last_value = next(reversed(evaluations.items()), (0, None))
    step = result.get("steps", last_step)
    seconds = result.get("seconds", 0.0)
    return TrialRecord(
        name=directory.name,
        number=trial["number"],
        values=trial["values"],
        status="failed" if trial.get("error") else result.get("status", "unfinished"),
        step=step,
        steps=step + sum(entry["left_step"] - entry["step"] for entry in adopted),
        seconds=seconds + sum(entry["left_seconds"] - entry["seconds"] for entry in adopted),
        value=read_run(directory).number(metric) if result else last_value,
        evaluations=evaluations,
        adopted=adopted,
        schedule=trial.get("schedule", []),
        error=trial.get("error") or result.get("error"),
    )


def _evaluations(run: RunDirectory, metric: str) -> dict[int, float]:
    lines = read_json_lines(run.metrics)
    return {line["step"]: line[metric] for line in lines if isinstance(line.get(metric), float)}


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the finished trial with the lowest value, or the lowest of all if none finished."""
    known = [record for record in records if record.value is not None]
    finished = [record for record in known if record.status == "finished"]
    return min(finished or known, key=lambda record: record.value or 0.0, default=None)


@dataclass(frozen=True)
class Saving:
    """Steps and seconds of all trials, with and without early stopping.

    `seconds_in_full` is extrapolated from the speed of each trial.
    """

    steps_trained: int
    steps_in_full: int
    seconds_trained: float
    seconds_in_full: float

    def describe(self) -> str:
        """Return one line for the user."""
        share = 1 - self.steps_trained / max(1, self.steps_in_full)
        return (
            f"trained {self.steps_trained:,} steps in {self.seconds_trained:.0f} s; without early "
            f"stopping {self.steps_in_full:,} steps in about {self.seconds_in_full:.0f} s: "
            f"{share:.0%} of the steps saved"
        )


def saving(records: Iterable[TrialRecord], max_steps: int) -> Saving:
    """Compare the steps trained with those of full-length trials.

    Trials that failed, or that a resumed search continues, are excluded.
    """
    trained, full, seconds, seconds_full = 0, 0, 0.0, 0.0
    for record in records:
        if record.status in ("failed", "interrupted", "unfinished"):
            continue
        own_max = int(record.values.get("trainer.max_steps", max_steps))
        trained, full = trained + record.steps, full + own_max
        seconds += record.seconds
        seconds_full += record.seconds / record.steps * own_max if record.steps else 0.0
    return Saving(trained, full, seconds, seconds_full)
