"""Trials read back from their run directories, which are all that a search remembers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt.errors import UserError
from minigpt.run.directory import RunDirectory
from minigpt.tune.space import Values, as_typed

TRIAL = "trial.json"  # in a trial's run directory: its place in the search
LABEL_LENGTH = 60


def trial_name(number: int, values: Values, changing: bool) -> str:
    """The folder of a trial: its number, and its values unless they change as it trains."""
    parts = [] if changing else [f"{_short(key)}={_rounded(v)}" for key, v in values.items()]
    label = re.sub(r"[^\w.=+-]+", "_", "_".join(parts))[:LABEL_LENGTH].strip("_")
    return f"{number:03d}_{label}" if label else f"{number:03d}"


def described_values(values: Values) -> str:
    """Values for people: short keys, few digits."""
    return " ".join(f"{_short(key)}={_rounded(value)}" for key, value in values.items())


def _short(key: str) -> str:
    return key.lstrip("+").rpartition(".")[2]


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_typed(value)


@dataclass(frozen=True)
class Evaluation:
    """A value of the metric at a step."""

    step: int
    value: float


@dataclass(frozen=True)
class TrialRecord:
    """What a trial's run directory says. `steps` and `seconds` are what it trained itself."""

    name: str
    number: int
    values: Values
    status: str  # of result.json; `unfinished` where there is none, `failed` where it never began
    step: int  # of its weights
    steps: int
    seconds: float
    value: float | None  # of the metric, at the last evaluation
    evaluations: list[Evaluation] = field(default_factory=list)
    adopted: list[dict[str, Any]] = field(default_factory=list)  # from whom it copied, when
    error: str | None = None

    def ended(self, scheduler: str) -> bool:
        """Whether a search that goes on leaves it alone. Nothing of a population is stopped."""
        ends = ("finished", "failed") if scheduler == "pbt" else ("finished", "failed", "stopped")
        return self.status in ends

    def to_dict(self) -> dict[str, Any]:
        """Its entry in tune.json."""
        return {
            "name": self.name,
            "values": self.values,
            "status": self.status,
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "value": self.value,
            "adopted": self.adopted,
            "error": self.error,
        }


def read_trials(folder: Path, metric: str) -> list[TrialRecord]:
    """The trials in a search's folder, by number. Raises UserError for a broken file."""
    records = [_record(path.parent, metric) for path in folder.glob(f"*/{TRIAL}")]
    return sorted(records, key=lambda record: record.number)


def _record(directory: Path, metric: str) -> TrialRecord:
    run = RunDirectory(directory)
    trial = run.read_json(directory / TRIAL)
    if not (isinstance(trial.get("number"), int) and isinstance(trial.get("values"), dict)):
        raise UserError(f"{directory / TRIAL}: not a trial's; restore it or delete the folder")
    result = run.read_json(run.result) if run.result.exists() else {}
    evaluations = _evaluations(run, metric)
    adopted = trial.get("adopted", [])
    step = result.get("steps", evaluations[-1].step if evaluations else 0)
    seconds = result.get("seconds", 0.0)
    return TrialRecord(
        name=directory.name,
        number=trial["number"],
        values=trial["values"],
        status="failed" if trial.get("error") else result.get("status", "unfinished"),
        step=step,
        steps=step + sum(entry["left_step"] - entry["step"] for entry in adopted),
        seconds=seconds + sum(entry["left_seconds"] - entry["seconds"] for entry in adopted),
        value=result.get(metric, evaluations[-1].value if evaluations else None),
        evaluations=evaluations,
        adopted=adopted,
        error=trial.get("error") or result.get("error"),
    )


def _evaluations(run: RunDirectory, metric: str) -> list[Evaluation]:
    if not run.metrics.exists():
        return []
    found = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break  # a kill in the middle of a line
        if isinstance(values, dict) and isinstance(values.get(metric), float):
            found.append(Evaluation(values["step"], values[metric]))
    return found


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The least value among finished trials; where none finished, among all that have one."""
    known = [record for record in records if record.value is not None]
    finished = [record for record in known if record.status == "finished"]
    return min(finished or known, key=lambda record: record.value or 0.0, default=None)


@dataclass(frozen=True)
class Saving:
    """What stopping early saved. Steps are counted; seconds in full follow each trial's speed."""

    steps_trained: int
    steps_in_full: int
    seconds_trained: float
    seconds_in_full: float

    def describe(self) -> str:
        """One line."""
        share = 1 - self.steps_trained / max(1, self.steps_in_full)
        return (
            f"trained {self.steps_trained:,} steps in {self.seconds_trained:.0f} s; all trials in "
            f"full are {self.steps_in_full:,} steps, at their speeds {self.seconds_in_full:.0f} s: "
            f"{share:.0%} of the steps saved"
        )


def saving(records: Iterable[TrialRecord], max_steps: int) -> Saving:
    """Compare what was trained with every trial in full; failed trials count for neither."""
    trained, full, seconds, seconds_full = 0, 0, 0.0, 0.0
    for record in records:
        if record.status == "failed":
            continue
        own_max = int(record.values.get("trainer.max_steps", max_steps))
        trained, full = trained + record.steps, full + own_max
        seconds += record.seconds
        seconds_full += record.seconds / record.steps * own_max if record.steps else 0.0
    return Saving(trained, full, seconds, seconds_full)


def require_same_search(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raise UserError where a folder holds another search than the one asked for."""
    for key in ("overrides", "options"):
        if found.get(key) != wanted[key]:
            raise UserError(
                f"--dir={folder}: holds a search with other {key} ({_said(found.get(key))}); "
                f"repeat them to go on with it, or choose another directory"
            )


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {text}" for key, text in value.items())
    return " ".join(value or ["none"])
