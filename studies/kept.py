"""Run minigpt, and keep what a report reads of its runs, to be committed.

Kept are small files: no weights, and no paths of the machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt.errors import require_one_of
from minigpt.files import read_json, read_json_lines, write_json
from minigpt.report.designs import TEXT_PATHS

# In the order in which they are kept: a run with a result, and a group of runs with its file, is
# complete.
OF_RUN = ("config.yaml", "manifest.json", "metrics.jsonl", "eval.json", "result.json")
OF_GROUP = ("measured.json", "sweep.json", "tune.json", "compare.json")


def chosen(text: str, names: Sequence[str]) -> list[str]:
    """Return the names in the value of --train, all of them for `all`. Raises UserError."""
    found = [*names] if text == "all" else [name for name in text.split(",") if name]
    for name in found:
        require_one_of("--train", name, [*names, "all"])
    return found


def minigpt(*arguments: str, allowed: int = 0) -> int:
    """Run a minigpt command and return its exit code; exit with it unless it is 0 or `allowed`."""
    code = subprocess.run([sys.executable, "-m", "minigpt.cli", *arguments]).returncode
    if code not in (0, allowed):
        sys.exit(code)
    return code


def keep(folder: Path, kept: Path) -> None:
    """Copy what a report reads of the runs in a folder and below. Of metrics only evaluations."""
    files = [path for path in sorted(folder.rglob("*")) if path.name in OF_RUN]
    files.sort(key=lambda path: OF_RUN.index(path.name))
    for name in OF_GROUP:
        files += sorted(folder.rglob(name))
    for file in files:
        target = kept / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, target)


def _copy(file: Path, target: Path) -> None:
    if file.name == "manifest.json":
        manifest = read_json(file)
        resolved = {k: v for k, v in manifest.get("resolved", {}).items() if k not in TEXT_PATHS}
        write_json(target, manifest | {"resolved": resolved})
    elif file.name == "metrics.jsonl":
        lines = [line for line in read_json_lines(file) if "val_loss" in line]
        target.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    elif file.name == "config.yaml":
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        values = [line for line in lines if not line.startswith("#")]  # comments have the folder
        target.write_text("".join(values), encoding="utf-8")
    else:
        shutil.copy(file, target)
