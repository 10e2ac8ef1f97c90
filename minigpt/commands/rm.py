"""`minigpt rm`: delete runs, sweeps and searches."""

from __future__ import annotations

import sys

from minigpt.commands.options import Parser
from minigpt.errors import UserError


def main(arguments: list[str]) -> None:
    """List what would be deleted, ask, and delete it."""
    parser = Parser(
        "rm",
        "Delete runs, and the folders of sweeps and searches with all their runs. Lists them and\n"
        "asks first. Refuses running runs, links, and directories with files that minigpt did not\n"
        "write. `latest` is then the newest run that is left.",
        ["minigpt rm runs/2026-11-22_18-11-35_rope_6c71", "minigpt rm --yes runs/SWEEP"],
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="a run, or a sweep's folder")
    parser.add_options({"--yes": "delete without asking"})
    options = parser.parse(arguments)

    from rich.filesize import decimal
    from rich.prompt import Confirm

    from minigpt.console import PipeConsole
    from minigpt.run.removal import plan_removal

    console = PipeConsole(highlight=False, soft_wrap=True)
    removals = plan_removal(options.run)
    sizes = [removal.bytes for removal in removals]
    for removal, size in zip(removals, sizes, strict=True):
        line = f"{removal.path}  {removal.describe()}, {decimal(size)}"
        console.print(line, markup=False)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError("--yes: needed where no terminal can ask; nothing was deleted")
        try:
            confirmed = Confirm.ask(f"delete {decimal(sum(sizes))}?", default=False)
        except EOFError:
            confirmed = False
        if not confirmed:
            console.print("nothing deleted")
            return
    for removal in removals:
        removal.remove()
    console.print(f"deleted {decimal(sum(sizes))}")
