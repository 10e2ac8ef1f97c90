"""`minigpt runs`: list runs, newest first."""

from __future__ import annotations

from pathlib import Path

from minigpt.commands.options import Parser

TERMINAL_ROWS = 30
STATUSES = ("finished", "running", "interrupted", "killed", "failed", "stopped", "paused")
STATUSES += ("not-started",)
HELP = {
    "DIR": "a run, a folder searched for runs, or latest: the sweep or search of the newest run "
    "(default: runs)",
    "--design": "only runs of this design: a name of the column `design`, a choice such as rope, "
    "or KEY=VALUE such as optimizer.lr=0.004; may be repeated",
    "--status": "only runs with this status; killed: without a result, and no process of this "
    "machine trains it; not-started: it has logged no step; may be repeated",
    "--limit": f"list at most N runs, 0: all (default: {TERMINAL_ROWS} in a terminal, else all)",
    "--json": "print JSON: a list of objects",
}


def main(arguments: list[str]) -> None:
    """Print a table of runs, and how many there are."""
    parser = Parser(
        "runs",
        "List runs, newest first: name, design, seed, status, steps, validation loss, the time of\n"
        "their last start, and size. The first that has begun is `latest`. Each objective has its\n"
        "own table, since losses of different objectives are not compared.",
        [
            "minigpt runs",
            "minigpt runs runs/SWEEP --design rope --status finished",
            "minigpt runs --status killed --json",
        ],
    )
    add = parser.add_argument
    add("folders", metavar="DIR", nargs="*", help=HELP["DIR"])
    add("--design", action="append", default=[], metavar="DESIGN", help=HELP["--design"])
    add("--status", action="append", default=[], choices=STATUSES, help=HELP["--status"])
    add("--limit", type=int, metavar="N", help=HELP["--limit"])
    add("--json", action="store_true", help=HELP["--json"])
    options = parser.parse(arguments)

    from minigpt.console import PipeConsole
    from minigpt.errors import require
    from minigpt.files import to_json
    from minigpt.report.listing import list_runs
    from minigpt.report.tables import print_table
    from minigpt.run.directory import RUNS, find_folder

    console = PipeConsole(highlight=False)
    limit = options.limit
    if limit is None:
        limit = TERMINAL_ROWS if console.is_terminal and not options.json else 0
    require(limit >= 0, "--limit", limit, "must be 0 or more")
    none_yet = not options.folders and not RUNS.is_dir()
    folders: list[Path] = [] if none_yet else [*map(find_folder, options.folders or [str(RUNS)])]
    statuses = [status.replace("-", " ") for status in options.status]
    listing = list_runs(folders, options.design, statuses, limit)
    if options.json:
        print(to_json(listing.rows, indent=2))
        return
    for table in listing.tables() if listing.rows else ():
        print_table(table, console)
    for note in listing.notes:
        console.print(note, soft_wrap=True, markup=False)
    for row in listing.rows:
        for problem in row["problems"]:
            console.print(f"warning: {problem}", soft_wrap=True, markup=False)
    console.print(listing.summary(), soft_wrap=True, markup=False)
