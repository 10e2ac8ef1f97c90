"""Damaged checkpoints, full disks, folders that cannot be written, and links."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt import files
from tests.conftest import TINY, Cli
from tests.train.test_resume import same_end


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
def test_a_flipped_bit_is_noticed_by_resume(cli: Cli, tiny_run: Path, name: str) -> None:
    file = tiny_run / "checkpoints/last" / name
    flip_a_bit(file)
    outcome = cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"minigpt: {file}: damaged: its checksum is not that of")


def test_a_flipped_bit_is_noticed_by_eval_and_sample(cli: Cli, tiny_run: Path) -> None:
    flip_a_bit(tiny_run / "checkpoints/best/model.safetensors")
    for command in ("eval", "sample", "inspect"):
        outcome = cli(command, "run")
        assert outcome.code == 2 and "checkpoints/best/model.safetensors: damaged" in outcome.err
    outcome = cli("eval", "run", "--checkpoint", "last")
    assert outcome.code == 0, outcome.err


def test_checkpoints_without_checksums_load(cli: Cli, tiny_run: Path) -> None:
    for file in tiny_run.glob("checkpoints/*/checksums.json"):
        file.unlink()
    assert cli("eval", "run").code == 0
    assert cli("train", "resume=run", "trainer.max_steps=14").code == 0


def test_damaged_checksums_are_one_line(cli: Cli, tiny_run: Path) -> None:
    (tiny_run / "checkpoints/best/checksums.json").write_text("[")
    outcome = cli("eval", "run")
    assert outcome.code == 2 and "checksum" in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("result.json", '"val_loss": 3', '"val_loss": 2'),
        ("config.yaml", "expansion: 4", "expansion: 5"),
        ("manifest.json", '"trainer.sample_prompt": "', '"trainer.sample_prompt": "x'),
    ],
)
def test_another_value_in_a_file_of_a_run_is_noticed(
    cli: Cli, tiny_run: Path, name: str, before: str, after: str
) -> None:
    """As by a flipped bit. Without the line of the digest, it is an edit."""
    file, commands = tiny_run / name, [["train", "resume=run", "trainer.max_steps=20"]]
    commands += [] if name == "result.json" else [["eval", "run"]]
    whole = file.read_text()
    assert whole.count(before) == 1
    file.write_text(whole.replace(before, after))
    for command in commands:
        outcome = cli(*command)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith(f"minigpt: {file}: ") and "content_sha256" in outcome.err
    outcome = cli("report", "run")
    assert f"{name}: " in outcome.out and "content_sha256" in outcome.out
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "content_sha256" not in line))
    assert "content_sha256" not in cli("report", "run").out


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_pickle_as_checkpoint_is_refused_in_one_line(cli: Cli, tiny_run: Path) -> None:
    checkpoint = tiny_run / "checkpoints/last"
    (checkpoint / "training.pt").write_bytes(pickle.dumps(Hostile()))
    (checkpoint / "checksums.json").unlink()
    outcome = cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "not a training state" in outcome.err and "weights_only" not in outcome.err
    assert not Path("executed").exists()


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_resumes(cli: Cli, workdir: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing fails in the middle."""
    options = [*TINY, "trainer.max_steps=400", "trainer.checkpoint_every=10"]
    options += ["trainer.eval_every=100", "trainer.sample_every=200"]
    assert cli("train", *options, "hydra.run.dir=whole").code == 0
    command = [sys.executable, "-m", "minigpt.cli", "train", *options, "hydra.run.dir=run"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    checkpoint = Path("run/checkpoints/last/training.pt")
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    size = Path("whole/checkpoints/last/training.pt").stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("\n") == 1 and "Traceback" not in err
    assert "run/checkpoints/last: checkpoint not written (" in err
    assert "the one written before is intact" in err
    assert "minigpt train resume=run" in err
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "failed" and "not written" in result["error"]
    assert result["steps"] < 400 and not [*Path("run/checkpoints").glob(".*")]
    assert cli("train", "resume=run").code == 0
    same_end(Path("whole"), Path("run"))


def fill_the_disk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each file of this name fail when its content is flushed, as on a full disk."""
    flush = files._flush_to_disk

    def fail(path: Path) -> None:
        if path.name == name or path.name.startswith(f".{name}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "_flush_to_disk", fail)


RUN_FILES = (
    *("tokenizer.json", "manifest.json", "config.yaml", "metrics.jsonl", "samples.txt"),
    *("model.safetensors", "training.pt", "info.json", "checksums.json", "result.json"),
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_full_disk_is_one_line_for_every_file_of_a_run(
    cli: Cli, workdir: Path, trained_once: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log = Path("run", name)
    with monkeypatch.context() as patch:
        if name in ("metrics.jsonl", "samples.txt"):  # appended to, not replaced
            log.parent.mkdir()
            log.symlink_to("/dev/full")
        else:
            fill_the_disk(name, patch)
        outcome = cli("train", *TINY, "hydra.run.dir=run")
    assert outcome.code == 1 and outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("minigpt: run/") and "make space" in outcome.err
    if log.is_symlink():
        log.unlink()
    resume = Path("run/config.yaml").exists()
    again = cli("train", *(["resume=run"] if resume else [*TINY, "hydra.run.dir=run"]))
    assert again.code == 0, again.err
    same_end(trained_once, Path("run"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("eval.json", ["eval", "run"]),
        ("report.html", ["report", "run"]),
        ("report.md", ["report", "run"]),
        ("inspect_next.png", ["inspect", "run"]),
        ("sweep.json", ["train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep"]),
        ("compare.json", ["compare", *TINY, "model=rope,alibi", "--dir", "compared"]),
        ("index.json", ["data", "--shards", "shards", "data=text", "data.path=text.txt"]),
    ],
)
def test_a_full_disk_is_one_line_for_other_files(
    cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: list[str]
) -> None:
    fill_the_disk(name, monkeypatch)
    outcome = cli(*command)
    assert outcome.code == 1 and outcome.err.count("\n") == 1, outcome.err
    assert name in outcome.err and "make space" in outcome.err
    assert not [*Path().rglob(".*.tmp")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_for_the_log_of_a_job_fails_the_job(cli: Cli, workdir: Path) -> None:
    command = ["train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    log = Path("sweep/seed=1/output.log")
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    outcome = cli(*command)
    assert outcome.code == 1
    assert outcome.err == "minigpt: 1 of 2 jobs have not finished; the same command runs the rest\n"
    assert (
        "No space left on device" in json.loads((log.parent / "result.json").read_text())["error"]
    )
    log.unlink()
    assert cli(*command).code == 0


@pytest.mark.parametrize("place", ["text.txt/runs", "closed/runs"])
def test_a_folder_that_cannot_be_written_is_one_line(cli: Cli, workdir: Path, place: str) -> None:
    """Root may write everywhere, but not below a file."""
    closed = place.startswith("closed")
    if closed and os.geteuid() == 0:
        pytest.skip("root ignores permissions")
    if closed:
        Path("closed").mkdir(mode=0o500)
    commands = [["train", *TINY, f"hydra.run.dir={place}/run"]]
    commands += [["train", "-m", *TINY, "seed=1,2", f"hydra.sweep.dir={place}/sweep"]]
    commands += [["data", "--shards", f"{place}/s", "data=text", "data.path=text.txt"]]
    for command in commands:
        outcome = cli(*command)
        assert outcome.code in (1, 2) and outcome.err.count("\n") == 1, outcome.err
        assert place in outcome.err


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system"])
def test_a_yaml_tag_that_names_code_executes_nothing(cli: Cli, tiny_run: Path, tag: str) -> None:
    config = tiny_run / "config.yaml"
    config.write_text(config.read_text() + f"hostile: {tag} ['touch executed']\n")
    for command in (["train", "resume=run", "trainer.max_steps=14"], ["eval", "run"]):
        outcome = cli(*command)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    for command in (["report", "run"], ["runs", "run"]):
        outcome = cli(*command)
        assert outcome.code in (0, 2) and "Traceback" not in outcome.err
    assert not Path("executed").exists()


def test_a_cache_that_cannot_be_written_is_left_out(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_DATA", "text.txt/folder")  # below a file
    for command in (
        ["train", *TINY, "tokenizer=bpe", "tokenizer.vocab_size=300", "hydra.run.dir=run"],
        ["eval", "run"],
        ["train", "resume=run", "trainer.max_steps=14"],
        ["bench", "train", *TINY, "--repeats", "1"],
        ["doctor"],
    ):
        outcome = cli(*command)
        assert outcome.code == 0, outcome.err


def test_links_out_of_a_run_directory_are_not_written_through(cli: Cli, tiny_run: Path) -> None:
    for name in ("metrics.jsonl", "checkpoints/last"):
        path, outside = tiny_run / name, Path("outside") / name
        outside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, outside)
        path.symlink_to(outside.absolute())
        size = outside.stat().st_size
        outcome = cli("train", "resume=run", "trainer.max_steps=20")
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert f"{path}: is a link to {outside.absolute()}" in outcome.err
        assert outside.stat().st_size == size
        assert not [*tiny_run.glob("checkpoints/.*")]
        assert cli("eval", "run").code == 0  # reading is harmless
        path.unlink()
        shutil.move(outside, path)


def test_a_checkpoint_that_links_to_another_one_is_replaced(cli: Cli, tiny_run: Path) -> None:
    last = tiny_run / "checkpoints/last"
    last.rename(tiny_run / "checkpoints/kept")
    last.symlink_to("kept")
    assert cli("train", "resume=run", "trainer.max_steps=20").code == 0
    assert not last.is_symlink() and (tiny_run / "checkpoints/kept/training.pt").exists()
    names = sorted(path.name for path in (tiny_run / "checkpoints").iterdir())
    assert names == ["best", "kept", "last"]
