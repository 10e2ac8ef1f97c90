"""`minigpt inspect`: plot attention, positions and predictions of a trained run."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

from minigpt.commands.options import Parser, add_run_arguments, set_threads
from minigpt.errors import UserError, require
from minigpt.files import user_path

if TYPE_CHECKING:
    from minigpt.evaluate.inspection import Prompt
    from minigpt.run.load import TrainedRun

DEFAULT_PROMPT = "\n"
MAX_TOP = 20
PRINTED_ROWS, PRINTED_TOP = 10, 5  # the last rows of the table of next tokens


OPTIONS = {
    "--prompt PROMPT": "of objective=masked and denoise, [MASK] in it is a gap (default: the first "
    "model.block_size tokens of the validation text, as an evaluation reads them)",
    "--out DIR": "default: RUN/inspect",
    "--top K": "number of most probable next tokens (default: 5)",
}


def main(arguments: list[str]) -> None:
    """Write an HTML page and PNG files, and print the probabilities of the next tokens."""
    parser = Parser(
        "inspect",
        "Plot what a trained run computes for a prompt: one prediction step by step, the\n"
        "attention of each layer and head, the biases or rotations of its positional scheme, and\n"
        "the most probable next tokens.",
        [
            "minigpt inspect latest",
            "minigpt inspect runs/NAME --prompt 'To be, or not' --top 3 --out plots",
            "minigpt inspect runs/DENOISE --prompt 'To be, or [MASK] be'",
        ],
    )
    add_run_arguments(parser)
    parser.add_options(OPTIONS, top=5)
    options = parser.parse(arguments)
    require(options.prompt != "", "--prompt", "", "empty; give at least one character")
    require(options.out != "", "--out", "", "empty; give a folder")
    require(1 <= options.top <= MAX_TOP, "--top", options.top, f"must be from 1 to {MAX_TOP}")

    from rich.table import Table
    from rich.text import Text

    from minigpt.console import PipeConsole, Progress

    set_threads(options)
    with Progress("loading"):
        from minigpt.evaluate.inspection import encode_prompt, inspect_prompt, inspection_runtime
        from minigpt.html import write_page
        from minigpt.run.load import TrainedRun

        trained = TrainedRun.load(options.run, options.checkpoint, options.device, options.set)
        given = options.prompt is not None
        prompt = encode_prompt(trained, options.prompt) if given else _default_prompt(trained)
    console = PipeConsole(highlight=False)
    runtime = inspection_runtime(trained).describe()
    console.print(f"{trained.run.path} ({trained.label}), {runtime}", soft_wrap=True)
    out = trained.run.path / "inspect" if options.out is None else user_path("--out", options.out)
    with Progress("computing and plotting"):
        sections = inspect_prompt(trained, prompt, options.top)
        title = f"{trained.run.path.name} ({trained.label}), inspected"
        try:
            written = write_page(out / "inspect.html", title, sections)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # not the fault of --out
                raise
            why = f"cannot be written ({error.strerror or error}); choose another folder"
            raise UserError(f"--out={out}: {why}") from None
    head, *rows = (row[: PRINTED_TOP + 2] for row in sections[-1].table or [[]])
    table = Table(*head)
    for row in rows[-PRINTED_ROWS:]:
        table.add_row(*map(Text, row))
    console.print(table)
    for path in written:
        console.print(f"plotted in {path}", soft_wrap=True)


def _default_prompt(trained: TrainedRun) -> Prompt:
    """Return the first block of the validation text, or a newline if it is not available."""
    from minigpt.evaluate.inspection import encode_prompt, validation_prompt

    try:
        return validation_prompt(trained)
    except UserError as error:
        print(f"no validation text, so --prompt={DEFAULT_PROMPT!r}: {error}", file=sys.stderr)
        return encode_prompt(trained, DEFAULT_PROMPT)
