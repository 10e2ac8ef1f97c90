"""An installed wheel has the configs and data of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_configs_are_found_in_an_installed_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(installed)
    templates = {path.name for path in (REPOSITORY / "minigpt" / "templates").iterdir()}
    assert templates == {path.name for path in (installed / "minigpt" / "templates").iterdir()}
    composed = subprocess.run(
        [sys.executable, "-m", "minigpt.cli", "train", "model=llama", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "name: llama" in composed.stdout
    code = "import minigpt; from minigpt.data.shakespeare import tiny_shakespeare as t; t(); "
    found = subprocess.run(
        [sys.executable, "-c", code + "print(minigpt.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(installed)
