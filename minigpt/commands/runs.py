"""`minigpt runs`: list runs, newest first."""

from __future__ import annotations

from minigpt.commands.options import Parser

OPTIONS = {
    "--design CHOICE": "only runs of this design: a choice, such as rope, or KEY=VALUE, such as "
    "optimizer.lr=0.004; if repeated, all must hold",
    "--status STATUS": "only runs that are finished, running, interrupted, stopped (by a search), "
    "failed or killed; may be repeated",
    "--json": "print one JSON object per line, with sizes in bytes and times in UTC",
}


def main(arguments: list[str]) -> None:
    """Print the runs below the folders."""
    parser = Parser(
        "runs",
        "List runs, newest first: design, seed, status, steps, last validation loss, time of the\n"
        "last start and size on disk. Designs are labelled by their differences.",
        [
            "minigpt runs",
            "minigpt runs runs/SWEEP --design rope --status finished",
            "minigpt runs --status killed --json",
        ],
    )
    text = "a run, a sweep, a folder of them, or latest (default: runs)"
    parser.add_argument("folders", metavar="DIR", nargs="*", help=text)
    parser.add_options(OPTIONS, design="append", status="append")
    options = parser.parse(arguments)

    from minigpt.console import PipeConsole
    from minigpt.files import to_json
    from minigpt.report.listing import listed, size_text, table
    from minigpt.report.runs import find_runs
    from minigpt.report.tables import print_table
    from minigpt.run.directory import RUNS

    console = PipeConsole(highlight=False)
    if not options.folders and not RUNS.is_dir():
        if not options.json:
            console.print(f"no runs below {RUNS}/ yet; start one with `minigpt train`")
        return
    collection = find_runs(options.folders or [str(RUNS)])
    rows = listed(collection.runs, options.design or [], options.status or [])
    if options.json:
        for row in rows:
            console.print(to_json(vars(row)), soft_wrap=True, markup=False)
        return
    size = size_text(sum(row.bytes for row in rows))
    title = f"{len(rows)} of {len(collection.runs)} runs, {size}"
    if rows:
        print_table(table(rows, title), console)
    else:
        console.print(title)
    for problem in collection.problems:
        console.print(f"warning: {problem}", soft_wrap=True, markup=False)
