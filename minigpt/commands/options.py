"""The argument parser of commands, and the options of commands that use a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from minigpt.commands.help import print_help
from minigpt.config.pairs import refusal, without_dashes
from minigpt.errors import UserError, require
from minigpt.files import user_path
from minigpt.imports import without_garbage_collection

RUN_OPTIONS = {
    "--checkpoint {best,last}": "best: the lowest validation loss (the default if it exists); "
    "last: the last step",
    "--device {auto,cpu,cuda,mps}": "default: auto",
    "--threads N": "CPU threads (default: as many as torch chooses)",
    "--set KEY=VALUE": "change a value of model.positional.* or model.backend.name of the run, "
    "such as model.positional.scaling=linear; repeatable",
}
QUANTIZE = {
    "--quantize {int8,int4}": "quantize the weights of linear layers to save memory "
    "(minigpt doctor says how to install it)",
}
RUN = "a run directory, a folder that export or transformers wrote, or latest"
HELP = "show this help"


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError, with examples below its help."""

    takes_overrides = False

    def __init__(self, command: str, description: str, examples: list[str]) -> None:
        super().__init__(
            prog=f"minigpt {command}",
            description=description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        settings: dict[str, Any] = {"nargs": 0, "default": argparse.SUPPRESS}
        self._help = self.add_argument("-h", "--help", action=_Help, help=HELP, **settings)

    def error(self, message: str) -> NoReturn:
        flags = self._option_string_actions
        raise UserError(refusal(self.prog, message, flags, self.takes_overrides))

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse arguments; flags may have underscores, and overrides have dashes."""
        arguments = [self._with_dashes(argument) for argument in arguments]
        if not self.takes_overrides:
            return self.parse_args(arguments)
        return self.parse_intermixed_args(without_dashes(arguments, self._option_string_actions))

    def _with_dashes(self, argument: str) -> str:
        flag, equals, value = argument.partition("=")
        dashed = flag.replace("_", "-")
        return f"{dashed}{equals}{value}" if dashed in self._option_string_actions else argument

    def add_overrides(self) -> None:
        """Add overrides, and to --help the groups and options to explain."""
        self.takes_overrides = True
        text = "config overrides, as in minigpt train; --KEY=VALUE is understood too"
        self.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=text)
        self._help.nargs, self._help.metavar = "*", "GROUP"
        self._help.help = f"{HELP}, or explain config groups, choices (GROUP=CHOICE) and options"

    def add_options(self, texts: dict[str, str], **settings: Any) -> None:
        """Add options.

        `texts`: the help text by `--name METAVAR`, `--name {choice,choice}`, or `--name` of a flag.
        `settings`: the type or the default of a value, or "append" if repeatable, by name.
        """
        for option, text in texts.items():
            flag, _, value = option.partition(" ")
            setting = settings.get(flag[2:].replace("-", "_"))
            kwargs: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
            if value.startswith("{"):
                kwargs = {"choices": value[1:-1].split(","), "default": setting}
            elif setting == "append":
                kwargs["action"] = "append"
            elif setting is Path:
                kwargs["type"] = path_option
            elif isinstance(setting, type):
                kwargs["type"] = setting
            elif setting is not None:
                kwargs |= {"type": type(setting), "default": setting}
            self.add_argument(flag, help=text, **kwargs)


class _Help(argparse.Action):
    """Prints the help of a command, or of the config groups that are named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> NoReturn:
        if values:
            print_help(values)
        else:
            parser.print_help()
        parser.exit()


def path_option(text: str) -> Path:
    """Return the path that an option has, for argparse, with ~ expanded."""
    try:
        return user_path("path", text)
    except UserError as error:  # argparse would not print the message of a ValueError
        raise argparse.ArgumentTypeError(str(error)) from None


def add_run_arguments(parser: Parser, several: bool = False) -> None:
    """Add RUN (a list with `several`), --checkpoint, --device, --threads and --set."""
    if several:
        text = (
            "a run directory, a folder that export or transformers wrote, another folder, for all "
            "finished runs below it, or latest: the sweep or search of the newest run, or that run"
        )
        parser.add_argument("run", metavar="RUN", nargs="+", help=text)
    else:
        parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_options(RUN_OPTIONS, device="auto", threads=int, set="append")
    parser.set_defaults(set=[])


def set_threads(options: argparse.Namespace) -> None:
    """Use as many CPU threads as --threads says. Raises UserError for fewer than 1 or too many."""
    with without_garbage_collection():
        from minigpt import runtime

    why = "must be 1 or more"
    require(options.threads is None or options.threads >= 1, "--threads", options.threads, why)
    runtime.set_threads(options.threads, "--threads")


def lines_of(flag: str, file: str | None) -> list[tuple[str, str]]:
    """Return the lines of the file of an option, unescaped, each with its file name and number.

    Empty lines are left out. Raises UserError if there are no others.
    """
    if file is None:
        return []
    try:
        lines = user_path(flag, file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{flag}={file}: {error.strerror or error}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag}={file}: not UTF-8 at byte {error.start}; convert it") from None
    from minigpt.data.corpus import unescape

    texts = [
        (f"{flag}={file}: line {number}", unescape(line))
        for number, line in enumerate(lines, 1)
        if line
    ]
    require(bool(texts), flag, file, "all lines are empty; write one text per line")
    return texts
