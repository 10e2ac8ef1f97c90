"""Options that commands working on a trained run share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from minigpt.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one line and whose help keeps its shape."""

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
    """Add the run (or `several`: a list), the checkpoint, the device and changes to the design."""
    if several:
        text = "a run directory, latest, or a folder, which stands for its finished runs"
        parser.add_argument("run", metavar="RUN", nargs="+", help=text)
    else:
        parser.add_argument("run", metavar="RUN", help="a run directory, or latest")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="which weights: of the best validation loss (default, if there is one), or the newest",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (default: auto)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="use the run with another value of model.positional.* or model.backend.name, "
        "as model.positional.scaling=linear; may be repeated",
    )


def add_quantize_argument(parser: argparse.ArgumentParser) -> None:
    """Add the choice of rounded weights."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round the weights of linear layers, to hold them in fewer bytes "
        "(pip install 'minigpt[quantize]')",
    )
