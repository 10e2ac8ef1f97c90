"""How to install the optional packages, in the form that fits how minigpt was installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

DISTRIBUTION = "minigpt-lab"  # the name on package indexes, where `minigpt` is another project


def install(*extras: str) -> str:
    """Return the shell command that installs the packages of extras into this environment.

    In an editable install it is the extra of that checkout, with the constraints there. Otherwise
    it lists the packages, because pip finds no wheel that was installed from a file or a URL.
    """
    try:
        distribution = Distribution.from_name(DISTRIBUTION)
    except PackageNotFoundError:  # run from a folder on PYTHONPATH
        return f"{_installer('pip')} install '{DISTRIBUTION}[{','.join(extras)}]'"
    # Both files: https://packaging.python.org/en/latest/specifications/recording-installed-packages
    installer = _installer((distribution.read_text("INSTALLER") or "pip").strip())
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        folder = _relative(Path(url2pathname(urlsplit(source["url"]).path)))
        constraints, target = folder / "constraints.txt", f"{folder}[{','.join(extras)}]"
        return f"{installer} install -c {_quoted(constraints)} -e {_quoted(target)}"
    requires = distribution.requires or []
    names = dict.fromkeys(name for extra in extras for name in requirements(requires, extra))
    return f"{installer} install {' '.join(map(_quoted, names))}"


def requirements(requires: list[str], extra: str) -> list[str]:
    """Return what an extra adds to the requirements in a distribution's metadata."""
    marked = (requirement.partition(";") for requirement in requires)
    pattern = rf"""extra == ['"]{re.escape(extra)}['"]"""
    return [package.strip() for package, _, marker in marked if re.search(pattern, marker)]


def _installer(name: str) -> str:
    """Return the command that installs into this environment, active or not."""
    python = Path(sys.executable)
    if name == "uv":
        return f"uv pip --python {_quoted(_relative(python))}"
    pip = python.with_name("pip")
    found = shutil.which("pip")
    if found is not None and Path(found) == pip:
        return "pip"
    return _quoted(_relative(pip)) if pip.exists() else f"{_quoted(_relative(python))} -m pip"


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _quoted(value: object) -> str:
    return shlex.quote(str(value))
