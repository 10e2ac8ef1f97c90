"""Errors that the command line prints as one line, without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours of a terminal
TRACEBACK = "MINIGPT_TRACEBACK"  # set this environment variable to 1 to see tracebacks

SPACE = "; make space, then type the command again"
REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: "; raise the limit of file sizes (ulimit -f), then type the command again",
    errno.EACCES: "; work in a folder where you may write",
    errno.EROFS: "; work in a folder where you may write",
    errno.ELOOP: "; remove that link",
}


class UserError(ValueError):
    """Invalid input. The command line prints the message as one line and exits with code 2."""

    reported = False  # True if it was already printed, e.g. during a sweep


class Failure(RuntimeError):
    """Work that failed although its input was valid. The command line exits with code 1."""

    reported = False


@contextmanager
def one_line_if_out_of_memory(advice: str) -> Iterator[None]:
    """Raise Failure with `advice` if the block runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error).lower() or "alloc_cpu" in str(error):
            raise Failure(f"out of memory; {advice} ({first_line(error)})") from error
        raise


def wants_traceback() -> bool:
    """Return whether tracebacks are enabled."""
    return os.environ.get(TRACEBACK) == "1"


def require(ok: bool, key: str, value: object, why: str) -> None:
    """Raise UserError `key=value: why` unless `ok`. `why` ends with what to do."""
    if not ok:
        raise UserError(f"{key}={value}: {why}")


def require_at_least(
    minimum: int, section: str, options: object, *names: str, or_null: bool = False
) -> None:
    """Raise UserError if one of the named options is below `minimum`; None passes if `or_null`."""
    why = f"must be {minimum} or more{', or null' if or_null else ''}"
    for name in names:
        value = getattr(options, name)
        require((or_null and value is None) or value >= minimum, f"{section}.{name}", value, why)


def require_one_of(key: str, value: str, known: Iterable[str], hint: str = "") -> None:
    """Raise UserError with `hint` or a suggestion unless `value` is one of the known names."""
    known = list(known)
    if value not in known:  # finding a suggestion is slow
        why = f"not one of {', '.join(known)}.{hint or did_you_mean(str(value), known)}"
        require(False, key, value, why)


def did_you_mean(word: str, known: Iterable[str], similarity: float = 0.6) -> str:
    """Return ' Did you mean X?' for the closest known words, or the empty string.

    `similarity`: of a close word, from 0 to 1 (difflib's ratio).
    """
    close = difflib.get_close_matches(word, set(known), n=2, cutoff=similarity)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if there is no message.

    Without colours, and without headings of a longer message.
    """
    text = ESCAPES.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = (line for line in lines if not re.match(r"#|[=*-]+$", line))
    return next(plain, lines[0] if lines else type(error).__name__)


def text_of_os_error(error: OSError, command: str) -> str:
    """Return one line for an error of the operating system, with what to do if that is known."""
    text = f"{error.filename or command}: {error.strerror or error}"
    return f"{text}{REMEDIES.get(error.errno, '')}"
