"""config.yaml of a run: written as requested, read back as written."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from minigpt.config.compose import composed_config
from minigpt.config.saved import read_config, resolved_values, save_config, with_resolved
from minigpt.errors import UserError
from minigpt.files import read_json
from tests.conftest import TINY, Cli
from tests.train.test_resume import same_end


def test_every_text_reads_back_as_written(tmp_path: Path) -> None:
    config = composed_config(["logger=none"])
    texts = ["".join(parts) for parts in itertools.product(("\\", "${", "}", "a"), repeat=4)]
    config.tags = [*texts, "${oc.env:HOME}", "\\${x}", "${nope:1}", "null", "1e3", " a", "'", '"']
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_text_with_an_interpolation_in_every_command(cli: Cli, workdir: Path) -> None:
    prompt = r"trainer.sample_prompt=\${HOME}"
    (workdir / "text.txt").write_text((workdir / "text.txt").read_text() + "${HOME}" * 9)
    assert cli("train", *TINY, prompt, "hydra.run.dir=run").code == 0
    assert read_config(Path("run/config.yaml")).trainer.sample_prompt == "${HOME}"
    assert "--- step 6 ---\n${HOME}" in Path("run/samples.txt").read_text()
    for command in (
        ["eval", "run"],
        ["sample", "run", "--max-new-tokens", "5"],
        ["inspect", "run"],
        ["train", "resume=run", "trainer.max_steps=14"],
        ["train", "--config-dir", "run", "--config-name", "config", "hydra.run.dir=again"],
        ["report", "run", "again"],
    ):
        outcome = cli(*command)
        assert outcome.code == 0, outcome.err
    again = read_config(Path("again/config.yaml"))
    assert again == read_config(Path("run/config.yaml"))


@pytest.mark.parametrize("value", ["${nope:1}", "${oc.env:HOME}", "a ${b}"])
def test_an_interpolation_in_a_saved_config_is_refused(
    cli: Cli, tiny_run: Path, value: str
) -> None:
    file = tiny_run / "config.yaml"
    content = yaml.safe_load(file.read_text())
    content["trainer"]["sample_prompt"] = value
    file.write_text(yaml.safe_dump(content))
    for command in (["eval", "run"], ["sample", "run"], ["train", "resume=run"]):
        outcome = cli(*command)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert f"config.yaml: trainer.sample_prompt={value}: " in outcome.err


def test_a_saved_config_with_an_interpolation_or_a_syntax_error_in_every_command(
    cli: Cli, tiny_run: Path
) -> None:
    config = tiny_run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("group: null", "group: ${nope:1}"))
    again = ("train", "--config-dir", str(tiny_run), "--config-name", "config")
    for command in (("sample", "run"), ("eval", "run"), ("train", "resume=run"), again):
        outcome = cli(*command)
        assert outcome.code == 2 and "group=${nope:1}: " in outcome.err
        assert outcome.err.count("\n") == 1
    config.write_text(f"{text}\na: [")
    for command in (("sample", "run"), ("eval", "run"), ("train", "resume=run"), again):
        outcome = cli(*command)
        assert outcome.code == 2 and "config.yaml, line " in outcome.err


def test_config_as_requested_and_manifest_as_resolved(cli: Cli, workdir: Path) -> None:
    options = [o for o in TINY if not o.startswith(("trainer.device", "trainer.threads"))]
    options += ["attention=sliding_window", "hydra.run.dir=run"]
    assert cli("train", *options).code == 0
    config = read_config(Path("run/config.yaml"))
    trainer, data = config.trainer, config.data
    assert (trainer.device, trainer.precision, trainer.threads) == ("auto", "auto", None)
    assert (data.dir, data.path) == (None, "text.txt")  # type: ignore[attr-defined]
    resolved = json.loads(Path("run/manifest.json").read_text())["resolved"]
    assert resolved["data.path"] == str(workdir / "text.txt")
    assert resolved["trainer.device"] in ("cpu", "cuda", "mps")
    assert resolved["model.attention.window"] > 0
    report = cli("report", "run")
    assert report.code == 0, report.err


def test_resolved_values_replace_what_was_not_changed_since() -> None:
    saved = composed_config(["logger=none", "trainer.device=auto"])
    resolved = composed_config(["logger=none", "trainer.device=cpu", "trainer.threads=1"])
    values = resolved_values(saved, resolved)
    assert values == {"trainer.device": "cpu", "trainer.threads": 1}
    assert with_resolved(saved, saved, values) == resolved
    changed = composed_config(["logger=none", "trainer.device=auto", "trainer.threads=2"])
    assert with_resolved(changed, saved, values).trainer.threads == 2
    with pytest.raises(UserError, match=r"^trainer\.device=gpu: "):
        with_resolved(saved, saved, {"trainer.device": "gpu"})


def test_resume_continues_on_the_machine_of_the_run(cli: Cli, workdir: Path) -> None:
    options = [o for o in TINY if not o.startswith("trainer.threads")]
    assert cli("train", *options, "trainer.threads=1", "hydra.run.dir=whole").code == 0
    assert cli("train", *options, "hydra.run.dir=run", "trainer.max_steps=5").code == 0
    manifest = read_json(Path("run/manifest.json"))
    manifest["resolved"]["trainer.threads"] = 1  # as if this was the number of cores there
    Path("run/manifest.json").write_text(json.dumps(manifest))
    outcome = cli("train", "resume=run", "trainer.max_steps=12")
    assert outcome.code == 0 and "bit for bit" not in outcome.out
    resolved = json.loads(Path("run/manifest.json").read_text())["resolved"]
    assert resolved["trainer.threads"] == 1
    assert "threads: null" in Path("run/config.yaml").read_text()


def test_a_run_of_a_gpu_resumes_on_the_cpu(cli: Cli, workdir: Path) -> None:
    options = [*TINY, "trainer.device=auto", "hydra.run.dir=run"]
    assert cli("train", *options, "trainer.max_steps=5").code == 0
    manifest = read_json(Path("run/manifest.json"))
    manifest["resolved"]["trainer.device"] = "cuda"
    Path("run/manifest.json").write_text(json.dumps(manifest))
    training = Path("run/checkpoints/last/training.pt")
    content = torch.load(training, weights_only=True)
    content["random"] |= {"cuda": torch.zeros(16, dtype=torch.uint8), "batches_on": "cuda"}
    content["random"]["batches"] = torch.zeros(16, dtype=torch.uint8)  # of a CUDA generator
    torch.save(content, training)
    (training.parent / "checksums.json").unlink()
    if not torch.cuda.is_available():
        refused = cli("train", "resume=run", "trainer.max_steps=12")
        assert refused.code == 2 and "trainer.device=cuda: not available" in refused.err
        assert "use cpu" in refused.err
    outcome = cli("train", "resume=run", "trainer.max_steps=12", "trainer.device=cpu")
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if "bit for bit" in line)
    assert "trainer.device=cpu (was cuda)" in line
    assert json.loads(Path("run/result.json").read_text())["steps"] == 12


def test_resume_with_another_logger(cli: Cli, workdir: Path) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run", "trainer.max_steps=5").code == 0
    changed = cli("train", "resume=run", "logger=wandb", "logger.mode=offline")
    assert changed.code == 2 and "has finished" in changed.err
    changed = cli(
        *("train", "resume=run", "trainer.max_steps=12", "logger=wandb", "logger.mode=offline")
    )
    assert changed.code == 0, changed.err
    assert [*Path("run/wandb").glob("offline-run-*")]
    assert read_config(Path("run/config.yaml")).logger.name == "wandb"


def test_a_text_that_was_moved(cli: Cli, workdir: Path) -> None:
    options = [*TINY, "trainer.max_steps=5"]
    for name in ("whole", "run"):
        assert cli("train", *options, f"hydra.run.dir={name}").code == 0
    assert cli("train", "resume=whole", "trainer.max_steps=12").code == 0
    shutil.move("text.txt", "moved.txt")
    for command in (["eval", "run"], ["train", "resume=run", "trainer.max_steps=12"]):
        outcome = cli(*command)
        assert outcome.code == 2 and "no such file" in outcome.err
    evaluated = cli("eval", "run", "--set", "data.path=moved.txt")
    assert evaluated.code == 0, evaluated.err
    resumed = cli("train", "resume=run", "trainer.max_steps=12", "data.path=moved.txt")
    assert resumed.code == 0, resumed.err
    same_end(Path("whole"), Path("run"))
    Path("moved.txt").write_text("another text\n" * 99)
    for command in (
        ["eval", "run", "--set", "data.path=moved.txt"],
        ["train", "resume=run", "trainer.max_steps=20", "data.path=moved.txt"],
    ):
        outcome = cli(*command)
        assert outcome.code == 2 and "has changed since" in outcome.err
