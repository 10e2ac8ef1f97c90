"""The argument parser of commands, and options of those that use a trained run."""

from __future__ import annotations

import argparse
from typing import NoReturn

from minigpt.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError, with examples below its help."""

    def __init__(self, command: str, description: str, examples: list[str]) -> None:
        super().__init__(
            prog=f"minigpt {command}",
            description=description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def add_run_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add RUN (a list with `several`), --checkpoint, --device and --set."""
    if several:
        text = "a run directory, latest, or a folder, which stands for its finished runs"
        parser.add_argument("run", metavar="RUN", nargs="+", help=text)
    else:
        parser.add_argument("run", metavar="RUN", help="a run directory, or latest")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="weights of the best validation loss (default, if there are any) or of the last step",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="default: auto",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of model.positional.* or model.backend.name of the run, such as "
        "model.positional.scaling=linear; repeatable",
    )


def add_quantize_argument(parser: argparse.ArgumentParser) -> None:
    """Add --quantize."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="quantize the weights of linear layers to save memory "
        "(pip install 'minigpt[quantize]')",
    )
