"""The journey: each step changes what its file says, and its page shows it and its results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from minigpt.config.groups import config_directory
from minigpt.config.pairs import flat
from minigpt.errors import UserError
from minigpt.export.architecture import group_of
from minigpt.report.designs import differences
from minigpt.report.runs import Run
from studies.journey import journey as study
from studies.journey.pages import END, PAGES, START, changes, part_of, write_pages
from studies.journey.steps import FOLDER, Step, changed_keys, steps
from studies.kept import study_options
from tests.conftest import Cli
from tests.report.synthetic import config, make_run

NAMES = sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index")


def own_options(step: Step) -> set[str]:
    """Return the options in the file of a step, as on the command line."""
    file = config_directory() / FOLDER / f"{step.name}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = values.pop("defaults")
    groups = {
        key.removeprefix("override /") for one in defaults if isinstance(one, dict) for key in one
    }
    return groups | {*flat(values)} - {"model.name"}


def test_a_step_changes_what_its_file_says_and_nothing_else() -> None:
    first, *others = steps().values()
    assert first.before is None and first.name == "01_bigram"
    for step in others:
        assert step.before is not None and step.before < step.name
        assert {group_of(key) for key in changed_keys(step)} == own_options(step), step.name
        assert step.config["model.name"] == step.name


def test_every_step_has_a_page_with_its_command() -> None:
    assert {*steps()} <= {*NAMES}
    assert [int(name.partition("_")[0]) for name in NAMES] == [*range(1, len(NAMES) + 1)]
    for name in NAMES:
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        command = f"minigpt train experiment=journey/{name} hydra.run.dir=runs/journey/{name}\n"
        assert (command in text) == (name in steps())
        assert (START in text and END in text) == (name in steps() or name in study.PRINTED)
        for printed in study.PRINTED.get(name, []):
            assert f"minigpt {printed.format(runs=study.RUNS)}\n" in text


def test_every_page_is_in_the_index_and_leads_to_the_next() -> None:
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\d\d_\w+$", index, re.MULTILINE) == NAMES
    for name, following in zip(NAMES, [*NAMES[1:], "index"], strict=True):
        assert f"]({following}.md)" in (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_the_kept_results_are_of_the_steps_as_they_are() -> None:
    runs = study.runs_of(study.HERE / "results")
    assert {*runs} == {*steps()}
    for name, run in runs.items():
        asked = steps()[name].config
        others = differences(run.config, asked)
        assert [key for key in others if asked.get(key) not in ("auto", None)] == [], name


def test_the_output_of_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert study.output("runs nowhere --help").startswith("$ minigpt runs nowhere --help\nusage: ")
    begin = "minigpt eval nowhere: ended with exit code 2"
    with pytest.raises(UserError, match=f"^{begin}$"):
        study.output("eval nowhere")
    assert "nowhere: " in capfd.readouterr().err
    with pytest.raises(UserError, match=f"^{begin}: .*nowhere: "):
        study.output("eval nowhere", with_stderr=True)
    assert capfd.readouterr().err == ""


def test_the_pages_show_the_kept_results(tmp_path: Path) -> None:
    """`python -m studies.journey.journey` would change nothing."""
    results = study.HERE / "results"
    write_pages(tmp_path, study.runs_of(results), results / "printed")
    written = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.*")}
    kept = {file.relative_to(PAGES) for file in PAGES.rglob("*.*")}
    assert written == kept
    for file in written:
        assert (tmp_path / file).read_bytes() == (PAGES / file).read_bytes(), file


# ---- pages of made-up runs ----


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    """Three steps, of which two lack the step before; an older run, and one that has not ended."""
    losses = {"06_flash_attention": 2.0, "07_subword_tokens": 3.0, "14_alibi": 2.5}
    for name, loss in losses.items():
        bits = {"val_bits_per_byte": loss / 2}
        settings = config(model__name=name)
        make_run(tmp_path / "results" / f"{name}_2", settings, loss=loss, result=bits)
    older = {"started": "2026-01-01T10:00:00+00:00"}  # of earlier code
    settings = config(model__name="14_alibi")
    make_run(tmp_path / "results/14_alibi", settings, loss=9.0, manifest=older)
    make_run(tmp_path / "results/01_bigram", config(model__name="01_bigram"), status=None)
    return study.runs_of(tmp_path / "results")


def test_a_page_shows_the_change_the_losses_and_the_picture(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    assert {*runs} == {"06_flash_attention", "07_subword_tokens", "14_alibi"}
    part = part_of("07_subword_tokens", runs, tmp_path)
    assert part is not None
    assert "| tokenizer | char | bpe |" in part and part.startswith(
        changes(steps()["07_subword_tokens"])
    )
    rows = re.findall(r"^\| (\d\S+) \|.*?\| ([\d.]+) \| ([\d.]+) \|", part, re.MULTILINE)
    assert [(row[0].replace("\\", ""), *row[1:]) for row in rows] == [
        ("06_flash_attention", "2.0000", "1.0000"),
        ("07_subword_tokens", "3.0000", "1.5000"),
    ]
    assert "(plots/07_subword_tokens.svg)" in part
    untrained = part_of("08_learned", runs, tmp_path)
    assert untrained == changes(steps()["08_learned"])
    assert part_of("01_bigram", runs, tmp_path) == ""


def test_the_index_has_differences_to_the_step_before(runs: dict[str, Run], tmp_path: Path) -> None:
    text = part_of("index", runs, tmp_path)
    assert text is not None
    lines = [line.replace("\\", "") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[-2:] for line in lines if "--" not in line] == [
        ["", "5 |"],
        ["+0.5000", "6 |"],
        ["", "13 |"],
    ]
    assert part_of("index", {}, tmp_path) == ""


def test_pages_are_written_with_their_pictures(runs: dict[str, Run], tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    printed.mkdir()
    (printed / "22_cache.txt").write_text("$ minigpt bench decode\nms\n")
    for _ in range(2):  # the second time over the first
        write_pages(tmp_path / "pages", runs, printed)
    drawn = {file.stem: file.read_text() for file in (tmp_path / "pages/plots").iterdir()}
    assert {*drawn} == {"index", *runs}
    assert (
        "bits/byte" in drawn["07_subword_tokens"] and "nats/token" not in drawn["07_subword_tokens"]
    )
    assert "nats/token" in drawn["14_alibi"] and ">14_alibi<" in drawn["14_alibi"]
    cache = (tmp_path / "pages/22_cache.md").read_text()
    assert f"{START}\n\n```\n$ minigpt bench decode\nms\n```\n\n{END}" in cache
    resume = "28_resume.md"
    assert (tmp_path / "pages" / resume).read_bytes() == (PAGES / resume).read_bytes()


@pytest.mark.slow
def test_a_tiny_journey(cli: Cli, monkeypatch: pytest.MonkeyPatch, workdir: Path) -> None:
    tiny: dict[str, Any] = {"data": "text", "data.path": "text.txt", "data.train_fraction": 0.8}
    tiny |= {"model.n_embd": 16, "model.block_size": 16, "trainer.batch_size": 4}
    tiny |= {"trainer.max_steps": 2, "trainer.eval_every": "null"}
    arguments = ["--train", "all", "--runs", "runs", "--out", "pages"]
    arguments += [f"{key}={value}" for key, value in tiny.items()]
    options = study_options("", ["steps"], study.RUNS, study.HERE, arguments)
    monkeypatch.setattr(study, "study_options", lambda *_: options)
    monkeypatch.setattr(study, "minigpt", lambda *command: cli(*command).code)
    monkeypatch.setattr(study, "PRINTED", {"25_quantisation": ["runs {runs}"]})
    study.main()
    assert {*study.runs_of(options.results)} == {*steps()}
    assert Path("runs/report.html").is_file() and not [*Path("pages").rglob("*.safetensors")]
    assert "$ minigpt runs runs\n" in Path("pages/25_quantisation.md").read_text()
    assert "| 27\\_accumulation |" in Path("pages/index.md").read_text()
