"""The command line: run a command; print errors as one line and return an exit code."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

from minigpt import __version__
from minigpt.cpu import prepare_process
from minigpt.errors import (
    TRACEBACK,
    Failure,
    UserError,
    did_you_mean,
    text_of_os_error,
    wants_traceback,
)
from minigpt.torchrun import RANK, is_started_as_rank, require_no_torchrun

COMMANDS = {
    "train": "train a model; every option is a config value (minigpt train model=rope)",
    "sample": "generate text with a trained run (minigpt sample latest --prompt ROMEO:)",
    "fill": "fill the gaps of a text (minigpt fill latest --text 'To [MASK]e or not')",
    "eval": "measure the losses of a trained run (minigpt eval latest)",
    "export": "write a run for transformers, llama.cpp or ONNX (minigpt export latest --to hf DIR)",
    "report": "compare runs, designs and seeds in one HTML page (minigpt report latest)",
    "runs": "list runs, newest first (minigpt runs --status finished)",
    "rm": "delete runs and sweeps; asks first (minigpt rm runs/NAME)",
    "inspect": "plot a run's attention maps and positional scheme (minigpt inspect latest)",
    "compare": "compare designs, each at its own best (minigpt compare model=rope,alibi)",
    "tune": "search hyperparameters (minigpt tune optimizer.lr=1e-3,4e-3)",
    "bench": "measure speed on this machine (minigpt bench train model=rope,alibi)",
    "data": "prepare a corpus and compare tokenizers on it (minigpt data)",
    "doctor": "check devices, packages and data, and show how to install missing ones",
}
FOLDER_COMMANDS = ("eval", "report", "runs")  # take a run, or a folder of runs such as a sweep
RUN_COMMANDS = ("sample", "fill", "inspect", "export", "rm", *FOLDER_COMMANDS)
SHELL_REQUESTS = [
    f"{verb}={shell}"
    for verb in ("install", "uninstall", "query")
    for shell in ("bash", "fish", "zsh")
]
# Hydra has no completion for zsh; what it answers to bash is read here.
ZSH = {
    "install=zsh": """_minigpt() {
  local -a answers
  answers=(${=$(COMP_LINE="${words[1,CURRENT]}" $words[1] -sc query=zsh 2>/dev/null)})
  compadd -Q -S '' -- $answers
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _minigpt minigpt""",
    "uninstall=zsh": "compdef -d minigpt; unfunction _minigpt",
}


def usage() -> str:
    """Return the text of `minigpt --help`."""
    lines = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    return f"""usage: minigpt COMMAND [...]

Train small GPTs on small text, and compare their designs.

{lines}

minigpt COMMAND --help lists a command's options. Exit codes: 0 success, 1 failure,
2 invalid input, 128 + N stopped by signal N. {TRACEBACK}=1 prints tracebacks.
version {__version__}"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A Windows code page lacks characters of texts, and names of files may not be UTF-8.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command in ("-V", "--version"):
        print(f"minigpt {__version__}")
        return 0
    if command in ("-sc", "--shell-completion"):  # called by the shell
        return complete(arguments)
    if command not in COMMANDS:
        guess, known = did_you_mean(command, COMMANDS), ", ".join(COMMANDS)
        return _fail(f"{command}: no such command.{guess} Known: {known}.")
    return run_command(command, rest)


def complete(arguments: list[str]) -> int:
    """Print completions for the shell: command names here, arguments of `train` by Hydra."""
    if not any(argument in SHELL_REQUESTS for argument in arguments):
        return _fail(f"-sc: add one of {', '.join(SHELL_REQUESTS)}")
    for request, script in ZSH.items():
        if request in arguments:
            print(script)
            return 0
    arguments = ["query=bash" if argument == "query=zsh" else argument for argument in arguments]
    if any(argument.startswith("query=") for argument in arguments):
        program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
        command, typed, overrides = rest.lstrip().partition(" ")
        if not typed:
            print(" ".join(name for name in COMMANDS if name.startswith(command)))
            return 0
        if command in RUN_COMMANDS:
            words = overrides.split(" ")
            print(" ".join(name for name in _run_names(command) if name.startswith(words[-1])))
        if command not in ("train", "compare", "tune", "bench", "data"):
            return 0
        os.environ["COMP_LINE"] = f"{program} {overrides}"
    return run_command("train", arguments)


def _run_names(command: str) -> list[str]:
    """Return what a command that takes runs may be given."""
    from minigpt.run.directory import RUNS, SEARCH, SWEEP, group_files, run_directories

    runs = {run.path for run in run_directories(RUNS)}
    if command == "rm":
        runs |= {file.parent for name in (SWEEP, SEARCH) for file in group_files(RUNS, name)}
        return sorted(map(str, runs))
    if command in FOLDER_COMMANDS:
        runs |= {path.parent for path in runs}
    return ["latest", *sorted(map(str, runs))]


def run_command(command: str, arguments: list[str]) -> int:
    """Run a command by name and return its exit code. Print a user error as one line to stderr."""
    prepare_process()
    try:
        if command != "train":
            require_no_torchrun(f"minigpt {command}")
        importlib.import_module(f"minigpt.commands.{command}").main(arguments)
        return 0
    except (UserError, Failure) as error:
        if wants_traceback():
            raise
        code = 2 if isinstance(error, UserError) else 1
        return code if error.reported else _fail_once(error, code)
    except KeyboardInterrupt as stop:
        return 128 + getattr(stop, "number", signal.SIGINT)
    except BrokenPipeError:  # `minigpt ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a read-only folder
        if wants_traceback():
            raise
        return _fail_once(Failure(text_of_os_error(error, command)), 1)


def _fail_once(error: UserError | Failure, code: int) -> int:
    """Print an error, of processes that torchrun started only that of the first."""
    if not is_started_as_rank():
        return _fail(str(error), code)
    from minigpt.ranks import is_first_to_report

    if not is_first_to_report():
        return code
    rank = os.environ[RANK]
    return _fail(str(error) if rank == "0" else f"rank {rank}: {error}", code)


def _fail(message: str, code: int = 2) -> int:
    print(f"minigpt: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
