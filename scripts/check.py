"""Every check of this repository, one after the other: format, lint, types, tests.

Arguments go to pytest: `python scripts/check.py -k resume`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CHECKS = (
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    ["pyright", "--pythonpath", sys.executable],
    ["pytest", "-n", "auto", *sys.argv[1:]],
)


def main() -> int:
    """Stop at the first check that fails, with its exit code."""
    for check in CHECKS:
        print("$", *check, flush=True)
        program = shutil.which(check[0], path=str(Path(sys.executable).parent))
        assert program is not None, f"{check[0]} is missing: pip install -e '.[dev]'"
        code = subprocess.run([program, *check[1:]], cwd=REPOSITORY).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
