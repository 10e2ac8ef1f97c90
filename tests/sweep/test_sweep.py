"""Finished, failed and skipped jobs, and the summary that a sweep prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from minigpt.config.groups import config_directory
from minigpt.files import read_json
from minigpt.model.attention import ATTENTION
from minigpt.model.ffn import FFN
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.sweep.watch import last_step
from minigpt.tokenizer.tiktoken_ import TiktokenTokenizer
from tests.conftest import TINY, Cli
from tests.sweep.helpers import HERE, runs

PRESETS = {
    "positional": set(POSITIONAL.names()),
    "attention": set(ATTENTION.names()),
    "ffn": set(FFN.names()),
    "norm": set(PLACEMENTS),
    "tokenizer": {"char", "gpt2", "bpe"},
}


def test_the_same_command_skips_finished_jobs(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "seed=1,2", "trainer.max_steps=2"]
    first = cli(*command)
    assert first.code == 0, first.err
    (folder,) = Path("runs").glob("*_sweep_seed_*")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = cli(*command)
    assert again.code == 0 and "2 of them finished before" in again.out and "2 skipped" in again.out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after[path]} == {folder / "sweep.json"}

    more = cli(
        "train", "-m", *TINY, "seed=1,2,3", "trainer.max_steps=2", f"hydra.sweep.dir={folder}"
    )
    assert more.code == 0 and "1 finished" in more.out and "2 skipped" in more.out
    listed = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["path"] for job in listed] == ["seed=1", "seed=2", "seed=3"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_sweep_over_every_choice(cli: Cli, preset: str) -> None:
    outcome = cli("train", "-m", f"sweep={preset}", *TINY, "trainer.max_steps=2", "seed=1", HERE)
    assert outcome.code == 0, outcome.out
    assert {name.partition("=")[2] for name in runs()} == PRESETS[preset]
    config = OmegaConf.load(next(iter(runs().values())) / "config.yaml")
    assert config.tags == [preset] and config.group == "sweep"
    params = OmegaConf.load(config_directory() / "sweep" / f"{preset}.yaml").hydra.sweeper.params
    assert params.seed == "1,2,3,4,5"


class Panic(BaseException):
    """What libraries in Rust raise; it is no Exception."""


def test_a_panic_ends_only_its_job(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(self: object, text: str) -> list[int]:
        raise Panic("at src/lib.rs")

    monkeypatch.setattr(TiktokenTokenizer, "encode", panic)
    sweep = ("tokenizer=gpt2,char", "data.dir=cache", "trainer.max_steps=2", HERE)
    outcome = cli("train", "-m", *TINY, *sweep)
    assert outcome.code == 1 and "1 of 2 jobs failed" in outcome.err
    result = read_json(Path("sweep/tokenizer=gpt2/result.json"))
    assert result == {"status": "failed", "error": "at src/lib.rs"}
    result = json.loads(Path("sweep/tokenizer=char/result.json").read_text())
    assert result["status"] == "finished"


def test_a_failed_job_is_reported_and_the_others_finish(cli: Cli) -> None:
    outcome = cli("train", "-m", *TINY, "model.n_head=2,3,4", "trainer.max_steps=2", HERE)
    assert outcome.code == 1
    assert "1 of 3 jobs failed" in outcome.err and outcome.err.count("\n") == 1
    failures = [
        line for line in outcome.out.splitlines() if "n_head=3  failed: model.n_head=3" in line
    ]
    assert (
        len(failures) == 1
        and "must divide model.n_embd=16" in failures[0]
        and "(log: sweep/n_head=3/output.log)" in failures[0]
    )
    assert "2 finished, 1 failed" in outcome.out
    log = Path("sweep/n_head=3/output.log").read_text()
    assert "Traceback" in log and "must divide model.n_embd=16" in log
    result = json.loads(Path("sweep/n_head=3/result.json").read_text())
    assert result["status"] == "failed" and "must divide" in result["error"]
    finished = [json.loads((run / "result.json").read_text()) for run in runs().values()]
    assert [result["status"] for result in finished] == ["finished", "finished"]


def test_a_job_that_fails_again_is_reported_again(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "optimizer.lr=1e30,1e-3", "trainer.max_steps=4", HERE]
    assert "1 finished, 1 failed" in cli(*command).out.replace(
        "1 failed, 1 finished", "1 finished, 1 failed"
    )
    again = cli(*command)
    assert again.code == 1 and "lr=1e+30  failed: loss" in again.out and "1 skipped" in again.out


def test_fail_fast_stops_a_sweep(cli: Cli) -> None:
    options = ["optimizer.lr=1e30,1e-3", "trainer.max_steps=9", "sweep.fail_fast=true", HERE]
    outcome = cli("train", "-m", *TINY, *options)
    assert outcome.code == 1
    assert "1 failed, 1 waiting" in outcome.out and "1 of 2 jobs failed" in outcome.err
    assert set(runs()) == {"lr=1e+30"}
    assert not list(Path("sweep").glob(".stop*"))


@pytest.mark.parametrize(
    ("broken", "is_object"),
    [
        ("", False),
        ("[]", False),
        ("{}", True),
        ('{"jobs": 3}', True),
        ('{"jobs": [{"a": 1}]}', True),
    ],
)
def test_broken_sweep_and_result_files(cli: Cli, broken: str, is_object: bool) -> None:
    command = ["train", "-m", *TINY, "seed=1,2", "trainer.max_steps=2", HERE]
    assert cli(*command).code == 0
    Path("sweep/sweep.json").write_text(broken)
    listed = cli(*command)
    assert listed.code == (0 if is_object else 2), listed.err
    assert is_object or "sweep.json: broken JSON" in listed.err
    Path("sweep/sweep.json").unlink()
    Path("sweep/seed=1/result.json").write_text(broken)
    outcome = cli(*command)
    assert outcome.code == (0 if is_object else 1), outcome.out
    assert is_object or "seed=1  failed: sweep/seed=1/result.json: broken" in outcome.out.replace(
        f"{Path.cwd()}/", ""
    )


def test_last_step_of_an_incomplete_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == 0
    file.write_text('{"step": 1}\n{"step": 2, "x": ' + "1" * 9999)
    assert last_step(file) in (0, 1)
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_step(file) == 2


def test_sweeps_over_tokenizers_print_bits_per_byte(cli: Cli) -> None:
    name = "n" * 60
    options = ["tokenizer=char,gpt2", f"name={name}", "trainer.max_steps=1", HERE]
    done = cli("train", "-m", *TINY, *options)
    assert done.code == 0, done.err
    assert "val loss, bits/byte" in done.out and "val loss, nats" not in done.out
    assert "tokenizer=char " in done.out and "tokenizer=gpt2 " in done.out


@pytest.mark.parametrize("ask", [["--cfg", "job"], ["-c", "job"], ["sweep.dry_run=true"]])
def test_a_dry_run_lists_the_jobs_and_writes_nothing(
    cli: Cli, workdir: Path, ask: list[str]
) -> None:
    command = ["train", "-m", *TINY, "model.n_head=2,3", "seed=1,2", "name=ab"]
    before = sorted(workdir.rglob("*"))
    listed = cli(*command, *ask)
    assert [path for path in sorted(workdir.rglob("*")) if path not in before] == []
    assert listed.code == 2 and listed.err.count("\n") == 1
    assert "2 of 4 jobs cannot run: model.n_head=3: must divide model.n_embd=16" in listed.err
    rows = [line.split() for line in listed.out.splitlines() if line.startswith("n_head=")]
    assert [row[:3] for row in rows if row[1] == "new"] == [
        ["n_head=2_seed=1", "new", "12"],
        ["n_head=2_seed=2", "new", "12"],
    ]
    assert "dry_run" not in listed.out.replace("--cfg job or sweep.dry_run runs them", "")
    assert "each with: logger=none data=text" in listed.out and "name=ab" in listed.out


def test_a_dry_run_knows_what_has_finished(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "trainer.max_steps=2"]
    assert cli(*command, "seed=1,2").code == 0
    (folder,) = Path("runs").glob("*_sweep_*")
    listed = cli(*command, "seed=1,2", "--cfg", "job")
    assert listed.code == 0 and listed.out.count("finished before") == 2
    assert f"0 of 2 jobs to run, in {folder}" in listed.out
    more = cli(*command, "seed=1,2,3", "--cfg", "job", f"hydra.sweep.dir={folder}")
    assert "1 of 3 jobs to run" in more.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-m", "--cfg", "all"], "-m lists its jobs with --cfg job and no other flag"),
        (["-m", "--cfg", "job", "--resolve"], "-m lists its jobs with --cfg job"),
        (["-m", "--info", "config"], "-m and --info: give only one of them"),
        (["--cfg", "job", "--info", "config"], "--cfg and --info: give only one of them"),
        (["--run", "-m", "--cfg", "job"], "--run and -m and --cfg: give only one of them"),
        (["--resolve"], "--resolve belongs to --cfg job; add that"),
    ],
)
def test_flags_that_exclude_each_other_are_one_line(
    cli: Cli, flags: list[str], message: str
) -> None:
    refused = cli("train", *flags, *TINY, "seed=1,2")
    assert refused.code == 2 and message in refused.err and refused.err.count("\n") == 1


def test_a_sweep_ends_with_commands_for_all_its_runs(cli: Cli) -> None:
    command = ["train", "-m", *TINY, "logger=wandb", "trainer.max_steps=2", "seed=1,2"]
    done = cli(*command)
    assert done.code == 0, done.err
    compare, upload = done.out.splitlines()[-2:]
    assert compare.split(maxsplit=1) == ["compare", "minigpt report latest"]
    program = str(Path(sys.executable).with_name("wandb"))
    arguments = upload.removeprefix("upload").strip().removeprefix("wandb sync ")
    ask = f"{program} sync --dry-run {arguments}"
    asked = subprocess.run(ask, shell=True, capture_output=True, text=True, check=True)
    assert "Would sync 2 run(s)" in asked.stdout + asked.stderr
    assert "\n2 of 2 runs finished" in cli("report", "latest").out
    evaluated = cli("eval", "latest")
    assert evaluated.code == 0 and evaluated.out.count("written to runs/") == 2
    assert cli("train", *TINY, "hydra.run.dir=runs/newest").code == 0
    again = cli(*command)
    (folder,) = Path("runs").glob("*_sweep_*")
    assert f"compare    minigpt report {folder}" in again.out
    assert cli("eval", "latest").out.count("written to runs/newest") == 1
