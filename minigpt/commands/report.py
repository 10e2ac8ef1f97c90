"""`minigpt report`: run directories compared, in the terminal and as one page."""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.commands.options import Parser
from minigpt.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from minigpt.report.comparison import Comparison

# What a terminal shows; the page has all tables.
IN_TERMINAL = ("leaderboard", "differences", "lengths", "configs")
LIVE_SECONDS, LONGEST_SECONDS = 5.0, 86400.0


def main(arguments: list[str]) -> None:
    """Print the comparison, and write the page and the tables beside it."""
    parser = Parser(
        "report",
        "Compare runs: a leaderboard of designs over seeds, paired differences to a baseline,\n"
        "curves, what else differs, in the terminal and as one page with tables beside it.\n"
        "Only run directories are read. The page needs no network and nothing beside it.",
        [
            "minigpt report latest",
            "minigpt report runs/sweep --baseline learned",
            "minigpt report runs --by positional --by norm --out compared.html",
            "minigpt report latest --live",
        ],
    )
    parser.add_argument(
        "folders",
        metavar="DIR",
        nargs="+",
        help="a run, a folder searched for runs, or latest: the sweep or search of the newest run, "
        "or that run",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="KEY,...",
        help="group runs by a config group (positional) or key (optimizer.lr), not by all that "
        "differs but the seed; may be repeated",
    )
    parser.add_argument(
        "--baseline",
        metavar="DESIGN",
        help="what differences are taken to, as positional=learned or learned "
        "(default: the design that was started first)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=Path,
        help="the page (default: report.html in DIR, or here if there are several)",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="show again whenever something new is there, until every run, sweep and search ended",
    )
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=float,
        default=LIVE_SECONDS,
        help=f"how often --live looks (default: {LIVE_SECONDS:g})",
    )
    parser.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT",
        help="also save a report there (pip install 'minigpt[workspaces]'); without network or "
        "key write its spec beside the page",
    )
    options = parser.parse_args(arguments)
    options.by = [key for group in options.by for key in group.split(",") if key]
    if not 0 < options.every <= LONGEST_SECONDS:
        raise UserError(f"--every={options.every:g}: must be from above 0 to a day of seconds")
    from minigpt.report.runs import folder

    options.folders = [str(folder(name)) for name in options.folders]  # `latest` of now
    out = _out(options)
    if options.wandb is not None:
        from minigpt.report.wandb_report import project_name, require_workspaces

        project_name(options.wandb)
        require_workspaces()

    from minigpt.console import PipeConsole

    console = PipeConsole(highlight=False)
    comparison = _watch(options, out, console) if options.live else _compare(options)
    show(comparison, console)
    page, *beside = _write(comparison, out, refresh=None)
    names = ", ".join(path.name.removeprefix(page.stem) for path in beside)
    line = f"written to {page}, and beside it {page.stem} + {names}"
    console.print(line, soft_wrap=True, markup=False)
    if options.wandb is not None:
        from minigpt.report.page import title
        from minigpt.report.wandb_report import project_name, save_report

        spec = out.with_name(f"{out.stem}_wandb.json")
        line = save_report(comparison, *project_name(options.wandb), title(comparison), spec)
        console.print(line, soft_wrap=True, markup=False)


def _out(options: Namespace) -> Path:
    """Where the page goes. Raises UserError for what is no name of a page."""
    out = options.out
    if out is None:
        one = options.folders[0] if len(options.folders) == 1 else ""
        return Path(one) / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out={out}: the page is HTML; name it {out.with_suffix('.html')}")
    if out.is_dir():
        raise UserError(f"--out={out}: is a folder; name a file in it, {out / 'report.html'}")
    return out


def _compare(options: Namespace) -> Comparison:
    from minigpt.report.comparison import compare

    return compare(options.folders, options.by, options.baseline)


def _write(comparison: Comparison, out: Path, refresh: float | None) -> list[Path]:
    """Write the page, and every table as CSV, all as Markdown and LaTeX; returns the paths."""
    from minigpt.files import write_text
    from minigpt.report.evaluations import choose
    from minigpt.report.page import title, write_report_page
    from minigpt.report.results import markdown, tables
    from minigpt.report.tables import to_csv, to_latex

    evaluations = choose(comparison)
    write_report_page(out, comparison, evaluations, refresh)
    made = tables(comparison, evaluations)
    texts = {
        ".md": markdown(title(comparison), comparison, made),
        ".tex": "\n".join(["% needs \\usepackage{booktabs}", *map(to_latex, made)]),
        **{f"_{table.name}.csv": to_csv(table) for table in made},
    }
    paths = [out]
    for ending, text in texts.items():
        paths.append(out.with_name(out.stem + ending))
        write_text(paths[-1], text)
    return paths


def show(comparison: Comparison, console: Console) -> None:
    """Print the comparison: tables in a terminal, plain lines in a pipe."""
    for part in _parts(comparison, console):
        console.print(part, soft_wrap=isinstance(part, str), markup=False)


def _parts(comparison: Comparison, console: Console) -> list[Any]:
    from rich.text import Text

    from minigpt.report.evaluations import choose
    from minigpt.report.results import summary, tables
    from minigpt.report.tables import to_plain, to_rich

    terminal = console.is_terminal
    parts: list[Any] = [summary(comparison)]
    for line in comparison.warnings:
        parts.append(Text(f"warning: {line}", style="yellow") if terminal else f"warning: {line}")
    parts += comparison.notes
    for table in tables(comparison, choose(comparison)):
        if table.name not in IN_TERMINAL:
            continue
        parts += to_rich(table, console.width) if terminal else ["", *to_plain(table)]
        if table.note:
            parts.append(Text(table.note, style="dim") if terminal else table.note)
    return parts


# ---- while a sweep runs ----


def _now(comparison: Comparison, console: Console) -> list[Any]:
    """What is worth watching: how far the runs are, and who leads."""
    from rich.text import Text

    from minigpt.report.results import differences, leaderboard, running, summary
    from minigpt.report.tables import to_rich

    made = [table(comparison) for table in (running, leaderboard, differences)]
    tables = [rich for table in made if table.rows for rich in to_rich(table, console.width)]
    return [Text(summary(comparison)), *tables]


def _watch(options: Namespace, out: Path, console: Console) -> Comparison:
    """Show and write again whenever a file changed, until all jobs have ended or Ctrl-C comes."""
    from rich.console import Group
    from rich.live import Live

    from minigpt.report.results import summary

    comparison, seen = None, None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while True:
                now = _state(options.folders)
                if now != seen:
                    seen = now
                    comparison = _compare(options)
                    _write(comparison, out, refresh=options.every)
                    if console.is_terminal:
                        live.update(Group(*_now(comparison, console)), refresh=True)
                    else:
                        console.print(summary(comparison), soft_wrap=True, markup=False)
                    if _ended(comparison):
                        break
                time.sleep(options.every)
        except KeyboardInterrupt:
            if comparison is None:
                raise
    assert comparison is not None
    return comparison


def _state(folders: list[str]) -> dict[Path, tuple[int, int]]:
    """The size and time of every file that a report reads."""
    from minigpt.report.runs import FILES, folder

    found = {}
    for top in map(folder, folders):
        for path in (p for name in FILES for p in top.rglob(name)):
            with suppress(FileNotFoundError):  # gone since it was listed
                stat = path.stat()
                found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


def _ended(comparison: Comparison) -> bool:
    """Whether nothing more will come: each run, job of a sweep and search has ended."""
    found = comparison.found
    ended = {run.path.resolve() for run in found.runs if "status" in run.result}
    awaited = [*(run.path for run in found.runs), *(job.path for job in found.jobs)]
    return not found.searching and {path.resolve() for path in awaited} <= ended
