"""The printed commands install the extras, whatever way minigpt was installed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from minigpt.extras import DISTRIBUTION, install, requirements

REPOSITORY = Path(__file__).parent.parent


def run(*command: str, path: Path | None = None, cwd: Path = REPOSITORY) -> str:
    """Return the output of a command; `path` is where Python looks for packages first."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def installed_by_wheel(folder: Path) -> Path:
    """Build a wheel and install it into a folder, with its metadata. Return the folder."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site))
    run(*pip, str(wheel))
    return site


def hint(extra: str, path: Path | None, cwd: Path) -> str:
    """Return what a fresh process prints to install an extra."""
    code = f"from minigpt.extras import install; print(install({extra!r}))"
    return run(sys.executable, "-c", code, path=path, cwd=cwd)


def test_the_command_of_a_wheel_runs(tmp_path: Path) -> None:
    """Without a network: every package of the extra is installed here already."""
    command = hint("tensorboard", installed_by_wheel(tmp_path), tmp_path)
    dry = run("sh", "-c", f"{command} --dry-run --no-index", cwd=tmp_path)
    assert "Requirement already satisfied: tensorboard" in dry


def test_the_command_of_a_checkout_names_its_files(tmp_path: Path) -> None:
    *_, constrain, constraints, editable, target = shlex.split(hint("ray", None, tmp_path))
    assert (constrain, editable) == ("-c", "-e")
    checkout, _, extra = target.removesuffix("]").partition("[")
    assert Path(constraints).samefile(Path(checkout, "constraints.txt"))
    project = tomllib.loads(Path(checkout, "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION and extra in project["optional-dependencies"]


def test_a_wheel_names_every_package_of_an_extra(tmp_path: Path) -> None:
    site = installed_by_wheel(tmp_path)
    words = shlex.split(hint("ray", site, tmp_path))
    assert words[-4] == "install"
    assert sorted(word.rstrip("0123456789.,<>=") for word in words[-3:]) == [
        *("hydra-ray-launcher", "optuna", "ray[tune]")
    ]
    (site / f"{DISTRIBUTION.replace('-', '_')}-0.1.0.dist-info/INSTALLER").write_text("uv\n")
    assert hint("pandas", site, tmp_path).startswith(f"uv pip install --python {sys.executable} ")


def test_in_the_checkout_the_command_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert install("ray") == "pip install -c constraints.txt -e '.[ray]'"


def test_every_extra_has_packages() -> None:
    requires = Distribution.from_name(DISTRIBUTION).requires or []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extra, packages in project["optional-dependencies"].items():
        assert len(requirements(requires, extra)) >= len(packages)
    assert requirements(requires, "no such extra") == []
