"""`minigpt rm`: delete runs, after a question."""

from __future__ import annotations

import sys

from minigpt.commands.options import Parser
from minigpt.errors import UserError

OPTIONS = {"--yes": "delete without a question"}


def main(arguments: list[str]) -> None:
    """List what is deleted, ask, and delete it."""
    parser = Parser(
        "rm",
        "Delete runs, or a sweep or a search with all of its runs. Lists them and asks first.\n"
        "Other folders, links, and runs that are being trained are refused.",
        ["minigpt rm runs/NAME runs/OTHER", "minigpt rm runs/SWEEP --yes"],
    )
    text = "a run directory, the folder of a sweep or a search, or latest"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=text)
    parser.add_options(OPTIONS)
    options = parser.parse(arguments)

    from minigpt.console import PipeConsole
    from minigpt.report.listing import size_text
    from minigpt.run.remove import find_targets, remove

    console = PipeConsole(highlight=False)
    targets = find_targets(options.runs)
    for target in targets:
        many = f"{len(target.runs)} runs, " if target.runs != [target.path] else ""
        line = f"{target.path} ({many}{size_text(target.bytes)})"
        console.print(line, soft_wrap=True, markup=False)
    if not options.yes:
        _ask()
    for target in targets:
        remove(target)
    console.print(f"deleted {len(targets)} {'folder' if len(targets) == 1 else 'folders'}")


def _ask() -> None:
    """Return if the user says yes. Raises UserError otherwise, and without a terminal."""
    if not sys.stdin.isatty():
        raise UserError("minigpt rm: nothing was deleted; add --yes where no terminal can be asked")
    try:
        answer = input("delete? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("minigpt rm: nothing was deleted")
