"""Runs that start from the weights of another, with and without adapters."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from minigpt.export.hub import name_of
from minigpt.run.load import TrainedRun
from tests.conftest import TINY, Cli

BASE = [*TINY, "trainer.sample_every=null", "hydra.run.dir=base"]
# Of the design, which comes from the base.
NOT_DESIGN = [option for option in TINY if not option.startswith("model.")]
FINETUNED = ["train", *NOT_DESIGN, "init=base", "trainer.sample_every=null"]
LORA = [*FINETUNED, "adapter=lora", "adapter.rank=2", "optimizer.lr=0.05"]


@pytest.fixture
def base(cli: Cli) -> Path:
    done = cli("train", "positional=learned", *BASE)
    assert done.code == 0, done.err
    return Path("base")


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints/last/model.safetensors")


def manifest(run: str) -> dict[str, object]:
    return json.loads(Path(run, "manifest.json").read_text())


def test_a_run_starts_from_the_weights_design_and_tokenizer_of_another(
    cli: Cli, base: Path
) -> None:
    done = cli(*FINETUNED, "trainer.max_steps=0", "hydra.run.dir=same", "model.dropout=0.1")
    assert done.code == 0, done.err
    best = load_file(base / "checkpoints/best/model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights("same").items())
    config = TrainedRun.load("same").config
    assert config.model.positional.name == "learned" and config.model.n_embd == 16
    assert config.model.dropout == 0.1 and config.init == str(base.absolute())
    recorded = manifest("same")["init"]
    assert isinstance(recorded, dict) and recorded["checkpoint"] == "best"
    assert Path("same/tokenizer.json").read_text() == Path("base/tokenizer.json").read_text()
    again = cli(*FINETUNED, "hydra.run.dir=longer")
    assert again.code == 0, again.err
    losses = [json.loads(Path(run, "result.json").read_text()) for run in ("base", "longer")]
    assert losses[1]["val_loss"] < losses[0]["val_loss"]


def test_a_sweep_starts_each_run_from_it(cli: Cli, base: Path) -> None:
    done = cli(*FINETUNED, "-m", "optimizer.lr=1e-3,1e-2", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert len([*Path("sweep").glob("*/result.json")]) == 2


@pytest.mark.parametrize("option", ["init", "objective.teacher"])
def test_a_sweep_trains_again_when_the_weights_have_changed(
    cli: Cli, base: Path, option: str
) -> None:
    arguments = FINETUNED if option == "init" else ["train", *TINY]
    arguments = [one for one in arguments if not one.startswith("init=")]
    sweep = [*arguments, f"{option}=base", "-m", "seed=1,2", "hydra.sweep.dir=sweep"]
    assert cli(*sweep).code == 0
    again = cli(*sweep)
    assert again.code == 0 and "2 skipped" in again.out, again.out + again.err
    shutil.rmtree(base)
    assert cli("train", "positional=learned", *BASE, "seed=9").code == 0
    changed = cli(*sweep)
    assert changed.code == 0, changed.err
    assert {path.parent.name for path in Path("sweep").glob("*/result.json")} == {
        *("seed=1", "seed=2", "seed=1_2", "seed=2_2")
    }


def test_adapters_are_trained_alone_saved_alone_and_merged(cli: Cli, base: Path) -> None:
    done = cli(*LORA, "hydra.run.dir=lora")
    assert done.code == 0, done.err
    assert "lora (rank 2; alpha 16.0; dropout 0.0; targets qkv); 128 of" in done.out
    assert {*weights("lora")} == {
        f"blocks.0.self_attention.qkv.lora_{part}.weight" for part in "ab"
    }
    result = json.loads(Path("lora/result.json").read_text())
    assert result["parameters"]["trained"] == 2 * (16 + 48)
    size = Path("lora/checkpoints/last/training.pt").stat().st_size
    assert size < Path("base/checkpoints/last/training.pt").stat().st_size / 2
    trained, of_base = TrainedRun.load("lora"), TrainedRun.load("base")
    state, before = trained.model.state_dict(), of_base.model.state_dict()
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert changed == {"blocks.0.self_attention.qkv.weight"}  # merged, so that none is slower
    assert cli("sample", "lora", "--max-new-tokens", "5").code == 0
    evaluated = cli("eval", "lora")
    assert evaluated.code == 0
    losses = json.loads(Path("lora/eval.json").read_text())["best"]
    assert losses["val_loss"] == pytest.approx(result["best_val_loss"], abs=2e-4)


def test_a_resumed_run_with_adapters_is_bit_equal(cli: Cli, base: Path) -> None:
    options = ["trainer.checkpoint_every=4", "model.dropout=0.1", "adapter.dropout=0.1"]
    assert cli(*LORA, *options, "hydra.run.dir=whole").code == 0
    assert cli(*LORA, *options, "hydra.run.dir=parts", "trainer.max_steps=8").code == 0
    resumed = cli("train", "resume=parts", "trainer.max_steps=12")
    assert resumed.code == 0, resumed.err
    # The learning rate of the first 8 steps depends on the length, so compare with such a run.
    assert cli(*LORA, *options, "hydra.run.dir=again", "trainer.max_steps=8").code == 0
    assert cli("train", "resume=again", "trainer.max_steps=12").code == 0
    assert weights("parts").keys() == weights("whole").keys()
    assert all(torch.equal(weights("parts")[n], weights("again")[n]) for n in weights("parts"))


def test_a_base_that_changed_is_refused(cli: Cli, base: Path) -> None:
    assert cli(*LORA, "hydra.run.dir=lora").code == 0
    shutil.rmtree(base)
    gone = cli("sample", "lora")
    assert gone.code == 2 and "base: no such run or folder" in gone.err
    assert cli("train", "positional=learned", *BASE, "seed=2").code == 0
    for command in (["sample", "lora"], ["train", "resume=lora", "trainer.max_steps=20"]):
        done = cli(*command)
        assert done.code == 2 and "its weights have changed since this run started" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model.n_embd=32"],
            "model.n_embd=32: the design comes from init=base, and only model.dropout, "
            "model.block_size, options of model.positional, and backend can change",
        ),
        (
            ["adapter=lora", "adapter.rank=17"],
            "adapter.rank=17: above the width 16 of blocks.0.self_attention.qkv; use at most that",
        ),
        (["positional=rope"], "positional=rope: the design comes from init=base"),
        (["model=gpt2"], "model=gpt2: the design comes from init=base"),
        (["tokenizer=bpe"], "tokenizer=bpe: the tokenizer comes from init=base, whose weights fit"),
        (["experiment=seed_blog"], "experiment=seed_blog: sets options of the design"),
        (["model.block_size=16"], "has positional.table.weight of shape (8, 16), and (16, 16) is"),
        (["model.positional.name=rope"], "is a choice of a config group; use positional=rope"),
        (["adapter=lora", "adapter.targets=[q]"], "adapter.targets=q: no linear layer"),
        (["init=nowhere"], "nowhere: no such run or folder"),
        (["init=null", "adapter=lora"], "adapter=lora: adapts trained weights; give them with"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    cli: Cli, base: Path, arguments: list[str], message: str
) -> None:
    done = cli(*FINETUNED, "hydra.run.dir=new", *arguments)
    assert done.code == 2 and message in done.err, done.err
    assert len(done.err.splitlines()) == 1 and not Path("new").exists()


def test_another_context_where_positions_allow(cli: Cli) -> None:
    assert cli("train", "positional=alibi", *BASE).code == 0
    done = cli(*FINETUNED, "model.block_size=16", "hydra.run.dir=longer")
    assert done.code == 0, done.err
    assert TrainedRun.load("longer").config.model.block_size == 16


def test_a_shorter_context_takes_the_first_learned_positions(cli: Cli, base: Path) -> None:
    short = ["model.block_size=5", "trainer.max_steps=0", "hydra.run.dir=shorter"]
    done = cli(*FINETUNED, *short)
    assert done.code == 0, done.err
    whole, first = (
        TrainedRun.load(name, "last").model.state_dict() for name in ("base", "shorter")
    )
    name = "positional.table.weight"
    assert torch.equal(first[name], whole[name][:5]) and len(whole[name]) == 8
    assert all(torch.equal(first[n], whole[n]) for n in whole if n != name)


def test_only_training_starts_from_weights(cli: Cli, base: Path) -> None:
    done = cli("bench", "train", *NOT_DESIGN, "init=base")
    assert done.code == 2 and "init=base: only train, compare and tune" in done.err


def test_muon_trains_adapters(cli: Cli, base: Path) -> None:
    for steps in (1, 12):
        options = ["optimizer=muon", f"trainer.max_steps={steps}", f"hydra.run.dir=steps{steps}"]
        assert cli(*LORA, *options).code == 0
    one, twelve = weights("steps1"), weights("steps12")
    assert all(not torch.equal(one[name], twelve[name]) for name in one)


def test_weights_that_are_not_there_are_one_line(cli: Cli, workdir: Path) -> None:
    Path("model.gguf").touch()
    Path("folder").mkdir()
    for options, line in {
        ("experiment=finetune_shakespeare",): "init: empty; give init=PATH of a run",
        ("init=name",): "init=name: no such run or folder of transformers; give a run, a folder",
        ("init=folder",): "init=folder: not a run: no config.yaml",
        ("objective.teacher=folder",): "objective.teacher=folder: not a run: no config.yaml",
        ("resume=folder",): "resume=folder: not a run: no config.yaml",
        ("init=model.gguf",): "init=model.gguf: is a file; give a run, or a folder",
        ("objective.teacher=nowhere",): "objective.teacher=nowhere: no such run or folder",
    }.items():
        refused = cli("train", *NOT_DESIGN, *options)
        assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
        assert line in refused.err
    assert {*Path().iterdir()} == {Path("model.gguf"), Path("text.txt"), Path("folder")}


def test_a_model_of_the_hub(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network one line; otherwise the folder that it is downloaded to."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["train", *NOT_DESIGN, "init=owner/name", "trainer.max_steps=1"]
    refused = cli(*arguments, "hydra.run.dir=new")
    line = "minigpt: init=owner/name: no such folder, and the Hugging Face Hub cannot be reached ("
    assert refused.code == 2 and refused.err.startswith(line), refused.err
    assert refused.err.endswith("); download it and give the folder\n")
    assert refused.err.count("\n") == 1 and not Path("new").exists()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(base))
    done = cli(*arguments, "hydra.run.dir=new")
    assert done.code == 0, done.err
    assert TrainedRun.load("new").config.init == str(base.absolute())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    missing = cli(*arguments, "hydra.run.dir=other")
    assert (
        missing.code == 2 and "huggingface_hub, which downloads models, is missing" in missing.err
    )
    assert "install" in missing.err and missing.err.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/hub/models--owner--a--name/snapshots/607a30d", "owner/a--name"),
        ("/home/me/runs/base", "base"),
        ("C:\\runs\\base", "base"),
    ],
)
def test_a_base_has_a_name_without_folders_of_the_machine(path: str, name: str) -> None:
    assert name_of(path) == name


def test_a_resumed_run_keeps_its_adapter(cli: Cli, base: Path) -> None:
    assert cli(*LORA, "trainer.max_steps=1", "hydra.run.dir=lora").code == 0
    refused = cli("train", "resume=lora", "adapter.rank=4")
    line = "minigpt: adapter.rank=4: a resumed run keeps its config and may change only trainer.max"
    assert refused.code == 2 and refused.err.startswith(line), refused.err
