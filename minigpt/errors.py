"""Mistakes and failures that are said in one line, without a traceback."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TRACEBACK = "MINIGPT_TRACEBACK"  # the environment variable that asks for tracebacks


class UserError(ValueError):
    """A wrong input. The command line prints its message as one line and exits with code 2."""

    reported = False  # True once a person has seen it, as in the middle of a sweep


class Failure(RuntimeError):
    """Work that could not be ended well although its input was right. Exits with code 1."""

    reported = False


@contextmanager
def one_line_if_out_of_memory(advice: str) -> Iterator[None]:
    """Raise Failure with advice where the block asks for more memory than there is."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error).lower() or "alloc_cpu" in str(error):
            raise Failure(f"out of memory; {advice} ({first_line(error)})") from error
        raise


def wants_traceback() -> bool:
    """Whether the user asked to see where an error arose."""
    return os.environ.get(TRACEBACK) == "1"


def require(ok: bool, key: str, value: object, why: str) -> None:
    """Raise UserError `key=value: why` unless `ok`. `why` ends with what to do."""
    if not ok:
        raise UserError(f"{key}={value}: {why}")


def require_one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError with a suggestion unless `value` is one of the known names."""
    known = list(known)
    why = f"not one of {', '.join(known)}.{did_you_mean(str(value), known)}"
    require(value in known, key, value, why)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known words, else the empty string."""
    close = difflib.get_close_matches(word, set(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__
