"""eval.json: the evaluations of a run, by checkpoint and changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from minigpt.data.tokens import Split
from minigpt.errors import UserError
from minigpt.evaluate.loss import Evaluation
from minigpt.evaluate.pseudo import PSEUDO
from minigpt.files import write_json
from minigpt.run.load import TrainedRun

LENGTHS, CONTEXTS, BY_POSITION = "lengths", "contexts", "by_position"
CURVES = (LENGTHS, CONTEXTS, BY_POSITION)  # entries that each evaluation extends
# What a loss is of, in its key.
TRAIN_SLICE, FULL_TRAIN, VAL, TEST = "train", "full_train", "val", "test"


def losses(part: str, split: Split, result: Evaluation) -> dict[str, float]:
    """Return the metrics of a part of the text for eval.json, and its number of tokens."""
    return {**result.metrics(part), f"{part}_tokens": len(split.tokens)}


def save_evaluation(trained: TrainedRun, values: dict[str, Any]) -> None:
    """Merge values into the run's entry of eval.json; drop entries of other weights.

    Raises UserError if `minigpt eval` did not write the file, OSError if it is not writable.
    """
    path = trained.run.evaluations
    weights = trained.weights_sha256
    with FileLock(path.with_name(".eval.lock")):  # two concurrent evaluations keep both results
        entries = _read_entries(path)
        earlier = entries.get(trained.label, {})
        if earlier.get("weights_sha256") != weights:
            earlier = {}
        curves = {name: earlier.get(name, {}) | values[name] for name in CURVES if name in values}
        entries[trained.label] = {"weights_sha256": weights, **earlier, **values, **curves}
        write_json(path, entries)


def is_recorded(
    trained: TrainedRun,
    parts: Sequence[str],
    lengths: list[int],
    contexts: list[int],
    by_position: bool,
    pseudo: bool = False,
) -> bool:
    """Return whether eval.json has the losses of these weights and the requested curves.

    `parts`: of the text. A loss without its number of tokens is of another part. `pseudo`: also the
    pseudo-perplexity.
    """
    entry = _read_entries(trained.run.evaluations).get(trained.label, {})
    known = entry.get(LENGTHS, {})
    wanted = {str(n) for n in lengths or [trained.config.model.block_size]}
    defined = {n for n in wanted if known.get(n, {}).get("loss", 0) is not None}
    return (
        entry.get("weights_sha256") == trained.weights_sha256
        and {f"{part}_tokens" for part in parts} <= entry.keys()
        and (not lengths or wanted <= known.keys())
        and {*map(str, contexts)} <= entry.get(CONTEXTS, {}).keys()
        and (not by_position or defined <= entry.get(BY_POSITION, {}).keys())
        and (not pseudo or f"{PSEUDO}_loss" in entry)
    )


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry.get("weights_sha256"), str) for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not written by minigpt eval; delete it and evaluate again")
