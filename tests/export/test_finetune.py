"""Folders that transformers wrote are fine-tuned, with and without adapters, and leave again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minigpt.export.tokenizer_json import to_tokenizer_json
from minigpt.run.load import TrainedRun
from minigpt.tokenizer.char import CharTokenizer
from tests.conftest import TEXT, TINY, Cli, the_run

DATA = [option for option in TINY if not option.startswith("model.")]
TRAIN = ["train", *DATA, "trainer.sample_every=null", "init=given"]
TOKENIZER = CharTokenizer("".join(sorted(set(TEXT))))


def save(kind: str, **options: Any) -> None:
    """Write a small random model of transformers, with a tokenizer of the text.

    `options`: of save_pretrained.
    """
    torch.manual_seed(0)
    n_vocab = TOKENIZER.n_vocab
    if kind == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=n_vocab, **sizes))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 8}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=n_vocab, **sizes))
    model.save_pretrained("given", **options)
    Path("given/tokenizer.json").write_text(to_tokenizer_json(TOKENIZER), encoding="utf-8")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("adapter", [[], ["adapter=lora", "adapter.rank=2"]], ids=["all", "lora"])
def test_a_model_of_transformers_is_finetuned_and_exported(
    cli: Cli, kind: str, adapter: list[str]
) -> None:
    save(kind)
    done = cli(*TRAIN, *adapter, "optimizer.lr=0.02", "hydra.run.dir=run")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert losses[-1] < losses[0]
    resumed = cli("train", "resume=run", "trainer.max_steps=13")
    assert resumed.code == 0, resumed.err
    exported = cli("export", "run", "--to", "hf", "out")
    assert exported.code == 0, exported.err
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "\nBase: `given`, checkpoint exported, sha256 " in card
    assert ("Adapter: `lora` (rank=2, " in card) == bool(adapter)
    assert (
        "| steps | 13 |" in card and "    minigpt train resume=run trainer.max_steps=13\n" in card
    )
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("given", "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    qkv = {
        name
        for name in before
        if "c_attn.weight" in name or name[-13:-7] in ("q_proj", "k_proj", "v_proj")
    }
    assert changed == qkv if adapter else len(changed) > len(qkv)
    assert json.loads(Path("out/config.json").read_text())["model_type"] == kind


def test_the_recipe_of_nanogpt(cli: Cli) -> None:
    save("gpt2")
    small = ["trainer.batch_size=4", "trainer.grad_accum_steps=2", "trainer.max_steps=3"]
    data = ["data=text", "data.path=text.txt", "trainer.device=cpu", "trainer.threads=1"]
    recipe = ["train", "experiment=finetune_shakespeare", "init=given", *data, *small]
    done = cli(*recipe, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert cli("sample", "run", "--max-new-tokens", "3").code == 0


def test_the_text_of_a_folder_from_elsewhere_is_named(cli: Cli) -> None:
    save("gpt2")
    done = cli("eval", "given", "--set", "data.path=text.txt")
    assert done.code == 0 and "\ntext: data.path=text.txt\n" in done.out, done.out + done.err
    assert json.loads(Path("given/eval.json").read_text())["exported data.path=text.txt"]


def test_the_card_names_the_teacher(cli: Cli) -> None:
    save("gpt2")
    options = ["objective.teacher=given", "trainer.max_steps=1", "hydra.run.dir=run"]
    done = cli(*TRAIN, *options)
    assert done.code == 0, done.err
    for name, to in (("run", "out"), ("out", "again")):
        exported = cli("export", name, "--to", "hf", to)
        assert exported.code == 0, exported.err
        card = Path(to, "README.md").read_text(encoding="utf-8")
        assert "\nTeacher of distillation: `given`, checkpoint exported, sha256 " in card
        assert "(temperature=2.0, weight=0.5).\n" in card
        assert str(Path.cwd()) not in card + Path(to, "minigpt.json").read_text(encoding="utf-8")


def test_a_run_has_the_names_of_its_base(cli: Cli) -> None:
    save("gpt2")
    done = cli(*TRAIN, "trainer.max_steps=1")
    assert done.code == 0, done.err
    run = the_run(Path("runs"))
    assert run.name.split("_", 2)[2].startswith("gpt2_text_")
    config = TrainedRun.load(str(run)).config
    assert (config.model.name, config.tokenizer.name) == ("gpt2", "json")
    assert "json tokenizer (vocabulary" in done.out
    assert " gpt2 " in cli("runs").out
    again = cli("train", f"init={run}", *TRAIN[1:-1], "trainer.max_steps=1", "hydra.run.dir=next")
    assert again.code == 0 and "gpt2: 1 layers" in again.out, again.err
    alone = ["--config-dir", str(run), "--config-name", "config", "init=null"]
    refused = cli("train", *alone, "hydra.run.dir=alone")
    line = "minigpt: tokenizer.name=json: is read from a folder; give init=FOLDER, or choose"
    assert refused.code == 2 and refused.err.startswith(line), refused.err
