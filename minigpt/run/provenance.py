"""Provenance of a run: command, code, package versions and machine."""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from minigpt.extras import DISTRIBUTION
from minigpt.files import readable_name, sha256

# Source files that determine a run's numbers: folders and modules of minigpt.
CODE = ("data", "tokenizer", "model", "optim", "train", "evaluate/loss.py", "runtime.py")
# Packages that determine a run's numbers.
COMPUTING = ("torch", "tiktoken", "tokenizers")
# Packages whose versions are recorded.
PACKAGES = ("torch", "hydra-core", "omegaconf", "wandb", "tiktoken", "tokenizers", "safetensors")


def provenance(command: list[str]) -> dict[str, Any]:
    """Return command, start time, versions, code digest and machine, for manifest.json."""
    return {
        "command": [readable_name(argument) for argument in command],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minigpt": importlib.metadata.version(DISTRIBUTION),
        "commit": _commit(),
        "code_sha256": code_sha256(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


@cache
def code_sha256() -> str:
    """Return the digest of the code that determines a run's numbers, see `executable_source`."""
    package = Path(__file__).parent.parent
    files = [file for name in CODE for file in (package / name).rglob("*.py")]
    files += [package / name for name in CODE if name.endswith(".py")]
    sources = (file.read_text(encoding="utf-8") for file in sorted(files))
    return sha256("\n".join(map(executable_source, sources)))


def executable_source(source: str) -> str:
    """Return Python source without comments, docstrings and formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_string(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def same_code(manifest: dict[str, Any]) -> bool:
    """Return whether a run used the code and packages that are installed now."""
    versions = manifest.get("versions", {})
    return manifest.get("code_sha256") == code_sha256() and all(
        versions.get(name) == importlib.metadata.version(name) for name in COMPUTING
    )


def _commit() -> str | None:
    """Return the checked-out commit, with '+changes' if files differ; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not an enclosing, unrelated repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
