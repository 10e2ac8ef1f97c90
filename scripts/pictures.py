"""Draw the README's pictures: a training in a terminal, and the page of a report.

    python scripts/pictures.py            # docs/training.svg and docs/report.png, about 7 minutes

The trainings are those that the README and docs/howto/reports.md name, in runs/pictures. Finished
runs of the report are not trained again. Needs a Chromium, which playwright drives.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUNS = Path("runs/pictures")
COLUMNS = 100  # of the terminal
FIRST, LAST = 12, 24  # lines of the training that are shown
REPORT_WIDTH, REPORT_HEIGHT, PIXEL_RATIO = 1000, 1127, 1.5  # of the page, in CSS pixels
TRAINING = ["train", "model=rope"]
POSITIONS = [
    *("train", "-m", "positional=learned,rope,alibi,nope", "seed=1,2,3"),
    *("model.n_layer=2", "model.n_embd=32", "trainer.max_steps=300"),
    *("trainer.eval_every=25", "trainer.log_every=25", f"hydra.sweep.dir={RUNS / 'positions'}"),
]


def main() -> None:
    """Train, and write both pictures."""
    os.chdir(ROOT)
    browser = chromium()
    printed = minigpt(*TRAINING, f"hydra.run.dir={RUNS / 'rope'}")
    (DOCS / "training.svg").write_text(terminal(printed), encoding="utf-8")
    minigpt(*POSITIONS)
    minigpt("report", str(RUNS / "positions"))
    photograph(browser, RUNS / "positions" / "report.html", DOCS / "report.png")


def chromium() -> str:
    """Return the path of a browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        sys.exit(f"no browser: install one of {', '.join(names)}")
    return browser


def minigpt(*arguments: str) -> str:
    """Run a command, show what it prints, and return it."""
    command = [sys.executable, "-m", "minigpt", *arguments]
    print("$ minigpt", *arguments, flush=True)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    printed = io.StringIO()
    for line in process.stdout:
        print(line, end="", flush=True)
        printed.write(line)
    if code := process.wait():
        sys.exit(code)
    return printed.getvalue()


def terminal(printed: str) -> str:
    """Return an SVG of a terminal with the training command, and how its output begins and ends."""
    lines = printed.rstrip().splitlines()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ minigpt {' '.join(TRAINING)}", style="bold"))
    console.print(Text("\n".join([*lines[:FIRST], "...", *lines[-LAST:]])))
    svg = console.export_svg(title="minigpt")
    # The fonts of rich's template are on a server; a page then takes its own monospaced one.
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def photograph(browser: str, page: Path, picture: Path) -> None:
    """Write a PNG of the top of an HTML page."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser)
        window = opened.new_page(
            viewport={"width": REPORT_WIDTH, "height": REPORT_HEIGHT},
            device_scale_factor=PIXEL_RATIO,
        )
        window.goto(page.resolve().as_uri())
        window.wait_for_timeout(1000)  # plots are drawn by a script
        window.screenshot(path=picture)
        opened.close()


if __name__ == "__main__":
    main()
