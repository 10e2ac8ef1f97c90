"""Names of other projects lead to ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minigpt.cli import COMMANDS
from minigpt.config.explain import all_groups, all_options
from minigpt.config.foreign import FLAGS, OPTIONS, VALUES, Entry, our_option, our_value
from minigpt.config.overrides import compose_overrides
from minigpt.runtime import DEVICES, PRECISIONS
from tests.conftest import Cli

OURS = {option.key for group in all_groups() for option in all_options(group)}
OURS |= {group.name for group in all_groups()} | {"hydra.run.dir"}
NAMES = [name for entry in OPTIONS for name in entry.names.split()]


@pytest.mark.parametrize("entry", OPTIONS, ids=lambda entry: entry.names.split()[0])
def test_every_entry_names_an_option_that_exists(entry: Entry) -> None:
    assert entry.ours or entry.hint
    assert not entry.ours or entry.ours in OURS
    assert entry.hint.endswith(".") or not entry.hint
    texts_with_keys = re.findall(r"\b(?:trainer|model|schedule|data|logger)\.\w+", entry.hint)
    assert set(texts_with_keys) <= OURS
    for choice in re.findall(
        r"\b(?:ffn|positional|attention|tokenizer|schedule|logger)=\w+", entry.hint
    ):
        compose_overrides([choice])
    for command in re.findall(r"minigpt (\w+)", entry.hint):
        assert command in COMMANDS


def test_no_entry_hides_a_name_of_ours() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert not OURS & set(NAMES)


def test_values_of_other_projects_are_none_of_ours() -> None:
    for key, known in (("device", DEVICES), ("precision", PRECISIONS)):
        assert not any(our_value(key, value) for value in known)
    for group in all_groups():
        assert not any(our_value(group.name, choice.name) for choice in group.choices)
    assert {key for key, _, _ in VALUES} <= {key.rpartition(".")[2] for key in OURS}


@pytest.mark.parametrize("entry", FLAGS, ids=lambda entry: entry.names.split()[0])
def test_every_flag_leads_to_one_of_sample_or_eval(cli: Cli, entry: Entry) -> None:
    """A flag that the command does not have is not suggested."""
    for name in entry.names.split():
        errors = [cli(command, "run", f"--{name}=x").err for command in ("sample", "eval")]
        assert any((entry.ours or entry.hint) in error for error in errors)


# nanoGPT's train.py, minGPT, litgpt's pretrain and lightning-hydra-template.
NANOGPT = {
    "out_dir=out": "hydra.run.dir",
    "eval_interval=9": "trainer.eval_every",
    "log_interval=1": "trainer.log_every",
    "eval_iters=20": "minigpt eval RUN --random-batches 50",
    "eval_only=True": "minigpt eval RUN",
    "always_save_checkpoint=True": "trainer.checkpoint_every",
    "init_from=resume": "resume",
    "wandb_log=False": "logger? logger=wandb turns it on, logger=none off.",
    "wandb_project=owt": "logger.project",
    "wandb_run_name=gpt2": "name",
    "dataset=openwebtext": "data",
    "gradient_accumulation_steps=40": "trainer.grad_accum_steps",
    "batch_size=12": "trainer.batch_size",
    "block_size=1024": "model.block_size",
    "n_layer=12": "model.n_layer",
    "n_head=12": "model.n_head",
    "n_embd=768": "model.n_embd",
    "dropout=0.0": "model.dropout",
    "bias=False": "model.bias",
    "learning_rate=6e-4": "optimizer.lr",
    "max_iters=600000": "trainer.max_steps",
    "weight_decay=1e-1": "optimizer.weight_decay",
    "beta1=0.9": "optimizer.beta1",
    "beta2=0.95": "optimizer.beta2",
    "grad_clip=1.0": "optimizer.grad_clip",
    "decay_lr=True": "schedule",
    "warmup_iters=2000": "schedule.warmup_steps",
    "lr_decay_iters=600000": "trainer.max_steps",
    "min_lr=6e-5": "schedule.final_fraction",
    "backend=nccl": "implementation of attention",
    "device=cuda:0": "trainer.device? Choose one GPU with the environment variable CUDA_VIS",
    "dtype=float16": "trainer.precision? fp16 is not supported",
    "dtype=bfloat16": "trainer.precision? Use bf16",
    "compile=True": "trainer.compile",
}
OTHERS = {
    "tie_embeddings=False": "embedding? It is tied or untied.",
    "trainer.learning_rate=5e-4": "optimizer.lr",
    "model.model_type=gpt-mini": "model",
    "system.work_dir=out": "hydra.run.dir",
    "system.seed=3": "seed",
    "train.global_batch_size=512": "trainer.batch_size",
    "train.micro_batch_size=4": "trainer.grad_accum_steps",
    "train.max_seq_length=256": "model.block_size",
    "train.lr_warmup_steps=100": "schedule.warmup_steps",
    "train.max_steps=9": "trainer.max_steps",
    "train.epochs=5": "trainer.max_steps",
    "eval.interval=10": "trainer.eval_every",
    "eval.max_iters=10": "minigpt eval RUN --random-batches 50",
    "n_query_groups=2": "model.n_kv_head",
    "precision=bf16-true": "trainer.precision? Use bf16",
    "n_ctx=64": "model.block_size",
    "epochs=3": "trainer.max_steps",
    "trainer=gpu": "trainer.device=cuda",
    "trainer.max_epochs=3": "trainer.max_steps",
    "trainer.accelerator=gpu": "trainer.device? Use cuda",
    "logger=csv": "logger=none",
    "seed_everything=1": "seed",
    "ckpt_path=last.ckpt": "resume",
    "model.optimizer.lr=1": "optimizer.lr",
    "data.batch_size=1": "trainer.batch_size",
    "trainer.device=cuda:1": "CUDA_VISIBLE_DEVICES",
    "trainer.precision=float16": "use bf16, or fp32",
    "trainer.precision=fp16": "use bf16, or fp32",
    "trainer.precision=16-mixed": "use bf16, or fp32",
    "trainer.precision=bfloat16": "Use bf16",
    "+trainer.max_epochs=3": "trainer.max_steps",
}


@pytest.mark.parametrize("override", NANOGPT | OTHERS)
def test_foreign_options_lead_to_ours(cli: Cli, workdir: Path, override: str) -> None:
    dashes = "--" if override in NANOGPT else ""
    outcome = cli("train", "logger=none", f"{dashes}{override}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert (NANOGPT | OTHERS)[override] in outcome.err and not Path("runs").exists()


def test_all_foreign_options_of_a_command_are_named_at_once(cli: Cli) -> None:
    known = [override for override in NANOGPT if not override.startswith("backend")]
    outcome = cli("train", "logger=none", *(f"--{override}" for override in known))
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    missing = [ours for key, ours in NANOGPT.items() if key in known and ours not in outcome.err]
    assert set(missing) <= {NANOGPT["dtype=float16"]}  # dtype is given twice; the last one counts
    assert "nobody" in cli("train", "logger=none", "nobody=1", "batch_size=1").err


def test_an_own_experiment_does_not_hide_the_unknown_option(cli: Cli, workdir: Path) -> None:
    (workdir / "own/experiment").mkdir(parents=True)
    (workdir / "own/experiment/mine.yaml").write_text("# @package _global_\nseed: 2\n")
    outcome = cli("train", "--config-dir=own", "experiment=mine", "max_iters=3")
    assert "max_iters: no such option or config group. Did you mean trainer.max_s" in outcome.err


def test_tune_and_data_know_the_names_too(cli: Cli, workdir: Path) -> None:
    assert "Did you mean optimizer.lr?" in cli("tune", "--learning_rate=1,2").err
    assert "Did you mean model.block_size?" in cli("data", "block_size=8").err


def test_flags_of_nanogpts_sample(cli: Cli, tiny_run: Path) -> None:
    flags = ["--num_samples=2", "--max_new_tokens=3", "--top_k=5", "--temperature=0.8", "--seed=1"]
    outcome = cli("sample", str(tiny_run), *flags)
    assert outcome.code == 0 and "sample 2 of 2" in outcome.out
    assert cli("sample", str(tiny_run), "--num_samples", "1", "--max_new_tokens", "3").code == 0
    assert "Did you mean --prompt? See" in cli("sample", "run", "--start=x").err
    assert "Give the run directory as RUN." in cli("sample", "run", "--out_dir=x").err
    error = cli("sample", "run", "--num_return_sequences=2", "--start=x y", "--seed=1", "--foo").err
    assert "--num_return_sequences: Did you mean --num-samples? --start: Did you mean --pr" in error
    assert "--foo:" not in error and error.count("\n") == 1
    assert "Did you mean --top-k" in cli("sample", "run", "--topk=3").err
    assert "CUDA_VISIBLE_DEVICES" in cli("eval", "run", "--device=cuda:0").err


def test_our_option() -> None:
    assert our_option("nothing.like_it") == ""
    assert our_option("optimizer.learning_rate") == " Did you mean optimizer.lr?"
