"""`minigpt report`: compare run directories in the terminal and as one HTML page."""

from __future__ import annotations

import math
import threading
import webbrowser
from argparse import Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.commands.options import Parser, path_option
from minigpt.errors import UserError, require
from minigpt.files import require_writable

if TYPE_CHECKING:
    from minigpt.report.comparison import Comparison
    from minigpt.report.page import Extra

RESIDUALS = "residuals"  # a table for the page: it is as long as there are runs
LIVE_SECONDS, MAX_SECONDS = 5.0, 86400.0
PORTS = range(8642, 8662)  # of --serve: the first that is free
MAX_PORT = 65535
HELP = {
    "DIR": "a run, a folder searched for runs, or latest: the sweep or search of the newest run, "
    "or that run",
    "--by": "group runs by a config group (positional) or key (optimizer.lr); default: by all that "
    "differs except the seed; may be repeated",
    "--baseline": "the design to subtract from the others: positional=learned, or just learned "
    "(default: the design that was started first)",
    "--equivalent": "also test whether each difference to the baseline lies within X, by two "
    "one-sided paired t-tests (TOST); X is in the unit of the ranking, nats/token or bits/byte",
    "--plan": "also print how many seeds would detect a difference of X to the baseline with 80 %% "
    "power, from the standard deviation of the differences seen so far",
    "--fit": "also fit power laws of the loss in parameters, tokens, unique tokens and FLOPs, with "
    "the compute-optimal line; minigpt train -m sweep=scaling trains runs for it",
    "--out": "the page (default: report.html in DIR, or in this folder for several DIR)",
    "--live": "update whenever a file changes, until every run, sweep and search has ended",
    "--every": f"how often --live and --serve check the files (default: {LIVE_SECONDS:g})",
    "--wandb": "also save a W&B report there (minigpt doctor says how to install it); without "
    "network or API key write its spec beside the page",
    "--serve": "show the page at an address of this machine, which updates it while runs train; "
    "write no files (DIR: default runs)",
    "--port": f"of --serve (default: {PORTS[0]}, or the next one that is free; 0: any)",
    "--open": "open the page of --serve in the browser",
}
WITHOUT_SERVE = {  # why --serve refuses an option
    "--fit": "--serve would fit again at each change",
    "--live": "--serve updates the page too",
    "--out": "--serve writes no files",
    "--wandb": "--serve writes no files",
}


def main(arguments: list[str]) -> None:
    """Print the comparison, and write the page and the tables, or serve the page."""
    options = _options(arguments)
    if options.serve:
        _serve(options)
        return
    from minigpt.console import PipeConsole
    from minigpt.report.comparison import compare, require_one_objective, require_paired_seeds
    from minigpt.report.page import Extra, write_report
    from minigpt.report.show import follow, show, show_tables
    from minigpt.run.directory import find_folder

    # Resolve once: `latest` may be another folder later.
    folders = [str(find_folder(name)) for name in options.folders]
    out = _out(options.out, folders)
    if options.wandb is not None:
        from minigpt.report.wandb_report import project_name, require_workspaces

        project_name(options.wandb)
        require_workspaces()
    read = partial(compare, folders, options.by, options.baseline, options.equivalent, options.plan)
    comparison = follow(folders, read, out, options.every) if options.live else read()
    require_paired_seeds(comparison)
    require_one_objective("--fit", [g.objective for g in comparison.groups] if options.fit else [])
    extra = _fits(comparison) if options.fit else Extra()
    console = PipeConsole(highlight=False)
    show(comparison, console)
    show_tables([table for table in extra.tables if table.name != RESIDUALS], console)
    page, *others = write_report(comparison, out, extra=extra)
    line = f"wrote {page}, {', '.join(path.name for path in others)}"
    console.print(line, soft_wrap=True, markup=False)
    if options.wandb is not None:
        from minigpt.report.page import title
        from minigpt.report.wandb_report import project_name, save_report

        spec = out.with_name(f"{out.stem}_wandb.json")
        line = save_report(comparison, *project_name(options.wandb), title(comparison), spec)
        console.print(line, soft_wrap=True, markup=False)


def _serve(options: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from minigpt.report.comparison import compare
    from minigpt.report.serve import Dashboard, listen
    from minigpt.run.directory import RUNS, find_folder

    folders = [str(find_folder(name)) for name in options.folders] or [str(RUNS)]
    read = partial(compare, folders, options.by, options.baseline, options.equivalent, options.plan)
    ports = PORTS if options.port is None else [options.port]
    with (
        listen(Dashboard(folders, read, options.every), ports) as server,
        suppress(KeyboardInterrupt),
    ):
        is_taken = ports is PORTS and server.server_port != PORTS[0]
        note = f" (port {PORTS[0]} is taken)" * is_taken
        print(f"{server.url} shows {', '.join(folders)}{note}; Ctrl-C ends it", flush=True)
        if options.open:  # a browser in the terminal waits for the page
            threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()
        server.serve_forever()


def _fits(comparison: Comparison) -> Extra:
    """Return the tables and plots of the laws that the runs determine; add the notes on them."""
    from minigpt.report.scaling import fit_scaling
    from minigpt.report.scaling_page import extra, notes

    scaling = fit_scaling(comparison)
    comparison.notes.extend(notes(scaling))
    return extra(scaling)


def _options(arguments: list[str]) -> Namespace:
    parser = Parser(
        "report",
        "Compare runs: which designs are better (paired tests over seeds), a leaderboard, paired\n"
        "differences, learning curves and configuration differences, in the terminal and as one\n"
        "HTML page with tables beside it. Reads run directories only; the page needs no network.",
        [
            "minigpt report latest",
            "minigpt report runs/sweep --baseline learned",
            "minigpt report runs --by positional --by norm --out compared.html",
            "minigpt report latest --equivalent 0.01 --plan 0.01",
            "minigpt report latest --fit",
            "minigpt report latest --live",
            "minigpt report --serve --open",
        ],
    )
    add = parser.add_argument
    add("folders", metavar="DIR", nargs="*", help=HELP["DIR"])
    add("--by", action="append", default=[], metavar="KEY,...", help=HELP["--by"])
    add("--baseline", metavar="DESIGN", help=HELP["--baseline"])
    add("--equivalent", metavar="X", type=float, help=HELP["--equivalent"])
    add("--plan", metavar="X", type=float, help=HELP["--plan"])
    add("--fit", action="store_true", help=HELP["--fit"])
    add("--out", metavar="FILE.html", type=path_option, help=HELP["--out"])
    add("--live", action="store_true", help=HELP["--live"])
    add("--every", metavar="SECONDS", type=float, help=HELP["--every"])
    add("--wandb", metavar="ENTITY/PROJECT", help=HELP["--wandb"])
    add("--serve", action="store_true", help=HELP["--serve"])
    add("--port", metavar="PORT", type=int, help=HELP["--port"])
    add("--open", action="store_true", help=HELP["--open"])
    options = parser.parse(arguments)
    if not options.folders and not options.serve:
        parser.error("DIR: missing; give a folder, such as latest, or --serve")
    _require_together(options)
    options.by = [key for group in options.by for key in group.split(",") if key]
    every = LIVE_SECONDS if options.every is None else options.every
    if not 0 < every <= MAX_SECONDS:
        raise UserError(f"--every={every:g}: must be above 0 and at most a day of seconds")
    if options.every is not None and not (options.live or options.serve):
        raise UserError("--every: is an option of --live and --serve; add one, or drop it")
    options.every = every
    if options.fit and options.by:
        raise UserError(
            f"--fit: fits single designs, not the groups of --by={','.join(options.by)}; drop one"
        )
    for key in ("equivalent", "plan"):
        value, why = getattr(options, key), "must be a number above 0, such as 0.01"
        require(value is None or 0 < value < math.inf, f"--{key}", value, why)
    return options


def _require_together(options: Namespace) -> None:
    """Raise UserError for an option that has no effect with --serve, or only with it."""
    given = {
        f"--{key}"
        for key, value in vars(options).items()
        if value is not None and value is not False
    }
    for option, why in WITHOUT_SERVE.items():
        if options.serve and option in given:
            raise UserError(f"{option}: cannot be used with --serve: {why}; drop one")
    port, why = options.port, f"must be from 0 (any) to {MAX_PORT}"
    require(port is None or 0 <= port <= MAX_PORT, "--port", port, why)
    for option in ("--port", "--open"):
        if not options.serve and option in given:
            raise UserError(f"{option}: is an option of --serve; add --serve, or drop it")


def _out(out: Path | None, folders: list[str]) -> Path:
    """Return the path of the page. Raises UserError if it cannot be one."""
    from minigpt.run.directory import COMPARISON, FINAL

    if out is None:
        folder = Path(folders[0] if len(folders) == 1 else "")
        is_comparison = (folder / COMPARISON).is_file()  # whose page minigpt compare writes
        return (folder / FINAL if is_comparison else folder) / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out={out}: the page is HTML; name it {out.with_suffix('.html')}")
    if out.is_dir():
        raise UserError(f"--out={out}: is a folder; name a file in it, {out / 'report.html'}")
    require_writable("--out", out)
    return out
