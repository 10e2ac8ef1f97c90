"""Run every check of this repository in order: format, lint, imports, types, tests.

Each command is printed before it starts. Arguments go to pytest: `-m fast` runs only fast tests,
`-m 'not exhaustive'` adds the slow ones, as CI does, and `-m ''` all.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CHECKS = (
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["lint-imports", "--no-logo", "--no-cache"],
    ["pyright", "--pythonpath", sys.executable],
    ["pytest", "-n", "auto", "--dist", "worksteal", *sys.argv[1:]],
)


for check in CHECKS:
    print("$", *check, flush=True)
    program = shutil.which(check[0], path=str(Path(sys.executable).parent))
    assert program is not None, f"{check[0]} is missing: pip install -e '.[dev]'"
    if code := subprocess.run([program, *check[1:]], cwd=REPOSITORY).returncode:
        sys.exit(code)
