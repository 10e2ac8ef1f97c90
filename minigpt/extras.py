"""How to install the optional packages, in the form that fits how minigpt was installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "minigpt-lab"  # the name on package indexes, where `minigpt` is another project
# Hydra's launchers, with the extra that installs each.
LAUNCHERS = {
    "ray": "ray",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
}


def install(*extras: str) -> str:
    """Return the shell command that installs the packages of extras into this environment.

    In an editable install it is the extra of that checkout, with the constraints there. Otherwise
    it lists the packages, because pip finds no wheel that was installed from a file or a URL.
    """
    try:
        distribution = Distribution.from_name(DISTRIBUTION)
    except PackageNotFoundError:  # run from a folder on PYTHONPATH
        return install_packages(f"{DISTRIBUTION}[{','.join(extras)}]")
    # Its files: https://packaging.python.org/en/latest/specifications/recording-installed-packages
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        folder = _relative(Path(url2pathname(urlsplit(source["url"]).path)))
        constraints, target = folder / "constraints.txt", f"{folder}[{','.join(extras)}]"
        return f"{_installer()} -c {_quoted(constraints)} -e {_quoted(target)}"
    requires = distribution.requires or []
    names = dict.fromkeys(name for extra in extras for name in requirements(requires, extra))
    return install_packages(*names)


def requirements(requires: list[str], extra: str) -> list[str]:
    """Return what an extra adds to the requirements in a distribution's metadata."""
    marked = (requirement.partition(";") for requirement in requires)
    pattern = rf"""extra == ['"]{re.escape(extra)}['"]"""
    return [package.strip() for package, _, marker in marked if re.search(pattern, marker)]


def install_packages(*names: str) -> str:
    """Return the shell command that installs packages into this environment."""
    return f"{_installer()} {' '.join(map(_quoted, names))}"


def _installer() -> str:
    """Return the start of a command that installs into this environment, active or not."""
    python = Path(sys.executable)
    if _installed_by() == "uv":
        return f"uv pip install --python {_quoted(_relative(python))}"
    pip = python.with_name("pip")
    found = shutil.which("pip")
    if found is not None and Path(found) == pip:
        return "pip install"
    program = _quoted(_relative(pip)) if pip.exists() else f"{_quoted(_relative(python))} -m pip"
    return f"{program} install"


def _installed_by() -> str:
    with suppress(PackageNotFoundError):
        return (Distribution.from_name(DISTRIBUTION).read_text("INSTALLER") or "").strip()
    return ""


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _quoted(value: object) -> str:
    return shlex.quote(str(value))
