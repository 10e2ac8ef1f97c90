"""What people type: right answers, one line for each mistake, and nothing left behind by it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt.model import GPT
from tests.conftest import TINY, Cli, inspect_wandb, the_run

CONFIGS = Path(__file__).parent.parent / "configs"
MISTAKES = {
    "model=alibi model.positional.slope=learned": "Did you mean model.positional.slopes",
    "model=rope model.positional.base=inf": "model.positional.base=inf: must be a finite number",
    "optimizer.lr=inf": "optimizer.lr=inf: must be a finite number",
    "positional=cope model.positional.max_position=1000": "no text of model.block_size=128 counts",
    "modle=rope": "modle: no such option or config group. Did you mean model?",
    "model=ropee": "model=ropee: no such model. Did you mean rope",
    "model.n_head=7": "model.n_head=7: must divide model.n_embd=128; use 2, 4, 8 heads",
    "model.n_hed=2": "model.n_hed: no such option or config group. Did you mean model.n_head",
    "+model.n_hed=2": "model.n_hed: no such option. Did you mean n_head",
    "+depth=2": "depth: no such option.",
    "lr=1": "lr: no such option or config group. Did you mean optimizer.lr?",
    "positional.base=1": "Did you mean model.positional.base?",
    "optimizer.lr=fast": "optimizer.lr=fast: not a valid float",
    "optimizer.lr=-1": "optimizer.lr=-1.0: must be 0 or more",
    "optimizer.lr=nan": "optimizer.lr=nan: ",
    "optimizer.clip=0": "optimizer.clip=0.0: must be above 0, or null",
    "trainer.max_steps=-1": "trainer.max_steps=-1: must be 0 or more",
    "trainer.max_steps=1.5": "trainer.max_steps=1.5: not a valid integer",
    "trainer.max_steps=null": "trainer.max_steps=null: ",
    "trainer.log_every=0": "trainer.log_every=0: must be 1 or more",
    "trainer.accumulate=3": "trainer.accumulate=3: must divide trainer.batch_size",
    "trainer.threads=100000": "trainer.threads=100000: this machine has ",
    "trainer.device=tpu": "trainer.device=tpu: use one of auto, cpu, cuda, mps",
    "trainer.precision=fp8": "trainer.precision=fp8: use one of",
    "trainer.sample_prompt=§": "'§' (U+00A7) at offset 0: not among the",
    "model.block_size=1000000": "model.block_size=1000000: the val split has only",
    "model.dropout=1": "model.dropout=1.0: must be in [0, 1)",
    "model.norm.kind=rms": "model.norm.kind=rms: not one of layernorm, rmsnorm. Did you mean",
    "model.positional.name=x": "model.positional.name=x: no such positional.",
    "model.positional.base=0": "model.positional.base=0.0: use a number above 1",
    "model.n_head=128": "model.n_head=128: rope pairs the channels of a head",
    "model.n_kv_head=3": "model.n_kv_head=3: must divide model.n_head=4; use 1, 2, 4 heads",
    "model.n_kv_head=0": "model.n_kv_head=0: must be 1 or more",
    "model.logit_softcap=0": "model.logit_softcap=0.0: must be above 0, or null",
    "positional=relative model.positional.clip=500": "model.positional.clip=500: no text of",
    "model=bigram positional=t5": "model.positional.name=t5: works inside blocks, and model.n_la",
    "trainer.device=cpu backend=sdpa model.logit_softcap=9": "on cpu: it has no logit soft-cap",
    "model.positional.factor=2": "model.positional.factor=2.0: nothing is scaled; set model.posi",
    "model.positional.scaling=yarm": "Did you mean yarn?",
    "schedule.final_fraction=2": "schedule.final_fraction=2.0: must be from 0 to 1",
    "data.train_fraction=1": "data.train_fraction=1.0: must be between 0 and 1",
    "seed=-1": "seed=-1: must be from 0",
    "seed=1,2": "seed=1,2: several values; add -m",
    "backend=flax": "backend=flax: no such backend. Did you mean flex?",
    "trainer.device=cpu backend=flex": "cannot train positional=rope on cpu: FlexAtt",
    "experiment=nano": "experiment=nano: no such experiment.",
    "model=[": "model=[: no such model.",
    "name='${nope}'": "nope",
    "hydra.run.dir='${nope}'": "nope",
    "--config-name=nope": "--config-name=nope: no such config",
    "--foo": "minigpt train: unrecognized arguments: --foo",
    "resume=": "an empty name is no run",
    "data.dir=": "data.dir=: needs a folder",
    "resume=nowhere": "nowhere: no such run directory",
    "resume=latest": "latest: no run under runs/ yet",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(cli: Cli, workdir: Path, mistake: str) -> None:
    before = sorted(workdir.rglob("*"))
    outcome = cli("train", "logger=none", *mistake.split(" "))
    assert outcome.code == 2
    assert MISTAKES[mistake] in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.out == ""
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data.path=own.txt: no such file, folder or matching files"),
        (b"", "own.txt: the file is empty (offset 0)"),
        (b"good \xff bad" * 99, "own.txt: byte 0xff at offset 5 is not UTF-8"),
        (b"ab", "the train split has only 1 tokens, one window needs 129"),
        (b"a", "data=text: 1 characters are too few to split"),
    ],
)
def test_bad_text(cli: Cli, workdir: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (workdir / "own.txt").write_bytes(content)
    outcome = cli("train", "logger=none", "data=text", "data.path=own.txt")
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1
    assert not (workdir / "runs").exists()


def test_text_without_path(cli: Cli) -> None:
    assert "data.path: missing; give it a value" in cli("train", "data=text").err


def test_unknown_command(cli: Cli) -> None:
    outcome = cli("trian")
    assert outcome.code == 2
    assert outcome.err.startswith("minigpt: trian: no such command. Did you mean train?")


@pytest.mark.parametrize("command", ["sample", "eval", "inspect"])
def test_commands_on_no_run(cli: Cli, command: str) -> None:
    outcome = cli(command, "nowhere")
    assert outcome.code == 2
    assert outcome.err == (
        "minigpt: nowhere: no such run directory; give a directory like runs/..., or `latest`\n"
    )


@pytest.mark.parametrize("command", ["sample", "eval", "inspect", "data", "doctor"])
def test_help_has_an_example(cli: Cli, capfd: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli(command, "--help")
    assert stop.value.code == 0
    assert f"examples:\n  minigpt {command}" in capfd.readouterr().out


def test_help_needs_no_torch() -> None:
    """The imports of a process tell more surely than its seconds."""
    for arguments in (["--help"], ["train", "--help"], ["train", "--cfg", "job", "--resolve"]):
        code = f"import minigpt.cli, sys\ntry: minigpt.cli.main({arguments})\nexcept SystemExit: 0"
        check = f"{code}\nassert 'torch' not in sys.modules and 'wandb' not in sys.modules"
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_train_help_lists_groups_and_values(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("train", "--help")
    shown = capfd.readouterr().out
    for line in ("tokenizer: bpe, char, gpt2, tiktoken", "minigpt train model=rope", "  lr: 0.004"):
        assert line in shown


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("minigpt tr", "train"),
        ("minigpt train model=ro", "model=rope"),
        ("minigpt train model.n_he", "model.n_head="),
        ("minigpt train positional=al", "positional=alibi"),
        ("minigpt data tokenizer=b", "tokenizer=bpe"),
        ("minigpt sample ", "latest"),
        ("minigpt doctor ", ""),
    ],
)
def test_shell_completion(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, offered: str
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli("-sc", "query=bash").out.strip() == offered
    assert "complete" in cli("-sc", "install=bash").out


def test_flags_before_and_after_overrides() -> None:
    from minigpt.hydra_app import flags_first

    expected = ["-m", "--config-dir", "x", "model=rope", "seed=1,2"]
    assert flags_first(["model=rope", "-m", "--config-dir", "x", "seed=1,2"]) == expected
    assert flags_first(["-m", "model=rope", "seed=1,2", "--config-dir", "x"]) == expected
    assert flags_first(["model=rope", "--cfg"]) == ["--cfg", "model=rope"]


@pytest.mark.parametrize("order", ["flag first", "flag last"])
def test_sweep(cli: Cli, workdir: Path, order: str) -> None:
    options = [*TINY, "model=rope,alibi", "seed=1,2", "trainer.max_steps=2"]
    outcome = cli("train", *(["-m", *options] if order == "flag first" else [*options, "-m"]))
    assert outcome.code == 0, outcome.err
    runs = sorted(path.parent for path in (workdir / "runs").rglob("result.json"))
    assert len(runs) == 4
    configs = [(run / "config.yaml").read_text() for run in runs]
    assert sum("name: alibi" in config for config in configs) == 2
    group = runs[0].parent.name
    assert all(f"group: {group}" in config for config in configs)


def test_a_failing_job_does_not_stop_a_sweep(cli: Cli, workdir: Path) -> None:
    outcome = cli("train", "-m", *TINY, "model.n_head=2,3,4", "trainer.max_steps=2")
    assert outcome.code == 2
    assert "job 1 failed: model.n_head=3: must divide model.n_embd=16" in outcome.err
    assert outcome.err.count("must divide") == 1
    assert len(list((workdir / "runs").rglob("result.json"))) == 2


def test_command_line_choice_wins_over_a_preset(cli: Cli) -> None:
    assert cli("train", *TINY, "model=llama", "positional=alibi", "norm=post").code == 0
    from minigpt.config import load_config

    model = load_config(the_run(Path("runs")) / "config.yaml").model
    assert (model.positional.name, model.norm.placement) == ("alibi", "post")
    assert (model.norm.kind, model.ffn.name, model.embedding.name) == (
        "rmsnorm",
        "swiglu",
        "untied",
    )


def test_run_directory(cli: Cli, workdir: Path) -> None:
    outcome = cli("train", *TINY)
    assert outcome.code == 0, outcome.err
    run = the_run(workdir / "runs")
    last = outcome.out.strip().splitlines()[-1]
    assert last.endswith(f"next: minigpt sample {run.relative_to(workdir)}")
    assert cli("sample", str(run)).code == 0
    files = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert files == {
        *("config.yaml", "manifest.json", "result.json", "tokenizer.json", "metrics.jsonl"),
        *("samples.txt", "checkpoints"),
    }
    result = json.loads((run / "result.json").read_text())
    numbers = {
        *("status", "seed", "steps", "best_step", "train_loss", "val_loss", "best_val_loss"),
        *("val_perplexity", "val_bits_per_byte", "parameters", "flops_per_token"),
        *("tokens_per_second", "seconds", "peak_memory_bytes", "device"),
    }
    assert numbers <= result.keys()
    assert all(result[key] is not None for key in numbers)
    assert set(result["parameters"]) == {"total", "non_embedding", "positional"}
    assert result["status"] == "finished" and result["steps"] == 12
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"command", "commit", "versions", "device", "data_sha256", "tokenizer_sha256"} <= set(
        manifest
    )


def test_a_saved_config_runs_again(cli: Cli, workdir: Path) -> None:
    assert cli("train", *TINY, "hydra.run.dir=first").code == 0
    again = cli("train", "--config-dir", "first", "--config-name", "config", "seed=2")
    assert again.code == 0, again.err
    second = the_run(workdir / "runs")
    configs = [
        (run / "config.yaml").read_text().splitlines()[2:] for run in (Path("first"), second)
    ]
    assert set(configs[0]) ^ set(configs[1]) == {"seed: 1", "seed: 2"}


def test_runs_are_named_after_what_was_chosen(cli: Cli) -> None:
    tiny = [*TINY, "trainer.max_steps=1"]
    assert cli("train", *tiny, "model=llama", "positional=alibi").code == 0
    assert "_llama_text_alibi_" in the_run(Path("runs")).name
    assert cli("train", "-m", *tiny, "model=rope,alibi", "seed=1,2").code == 0
    names = {path.parent.name for path in Path("runs").glob("*_sweep_*/*/manifest.json")}
    assert names == {f"{i}_model={m}_seed={s}" for i, (m, s) in enumerate(
        [("rope", 1), ("rope", 2), ("alibi", 1), ("alibi", 2)])}  # fmt: skip


def test_values_that_hydra_wants_quoted(cli: Cli, workdir: Path) -> None:
    (workdir / "文 [1].txt").write_text("\ufeff" + "some text, 日本\n" * 99, encoding="utf-8")
    outcome = cli("train", *TINY, "data.path=文 [1].txt", "name=it's", "trainer.sample_prompt=日")
    assert outcome.code == 0, outcome.err
    assert "\ufeff" not in (the_run(workdir / "runs") / "tokenizer.json").read_text()


def test_a_reader_that_leaves_does_not_end_a_run(workdir: Path) -> None:
    command = f"{sys.executable} -m minigpt.cli train {' '.join(TINY)} hydra.run.dir=run | head -1"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=120)
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"


def test_running_out_of_memory_is_one_line(cli: Cli) -> None:
    outcome = cli("train", *TINY, "model.n_embd=2000000", "model.n_head=1")
    assert outcome.code == 1
    assert outcome.err.startswith("minigpt: out of memory; lower model.n_embd")
    assert outcome.err.count("\n") == 1


def test_a_run_is_not_overwritten(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    outcome = cli("train", *TINY, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "holds a run already" in outcome.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_sample(cli: Cli) -> None:
    assert cli("train", *TINY).code == 0
    arguments = ["sample", "latest", "--prompt", "Line", "--max-new-tokens", "20", "--seed", "3"]
    first = cli(*arguments)
    assert first.code == 0, first.err
    assert first.out.startswith("Line") and len(first.out) == len("Line") + 20 + 1
    assert cli(*arguments).out == first.out
    assert cli(*arguments[:-1], "4").out != first.out
    several = cli(*arguments, "--num-samples", "2").out
    assert several.startswith("--- sample 1 of 2 ---\n" + first.out)
    greedy = [cli(*arguments[:-1], seed, "--greedy").out for seed in ("1", "2")]
    assert greedy[0] == greedy[1]
    assert cli(*arguments[:-1], "9", "--top-k", "1").out == greedy[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "§"], "'§' (U+00A7) at offset 0"),
        (["--prompt", ""], "--prompt=: empty"),
        (["--top-p", "0"], "--top-p=0.0: must be above 0"),
        (["--top-k", "0"], "--top-k=0: must be 1 or more"),
        (["--temperature", "-1"], "--temperature=-1.0: must be 0 or more"),
        (["--temperature", "hot"], "invalid float value: 'hot'"),
        (["--max-new-tokens", "0"], "--max-new-tokens=0: must be 1 or more"),
        (["--greedy", "--top-k", "3"], "--greedy: excludes --top-k"),
        (["--greedy", "--min-p", "0.1"], "--greedy: excludes --min-p"),
        (["--min-p", "2"], "--min-p=2.0: must be above 0"),
        (["--repetition-penalty", "inf"], "--repetition-penalty=inf: must be above 0"),
        (["--stop", ""], "--stop=: empty"),
        (["--prompts", "nowhere.txt"], "--prompts=nowhere.txt: No such file or directory; give"),
        (["--prompts", "."], "--prompts=.: Is a directory; give a text file"),
        (["--num-sample", "3"], "unrecognized arguments: --num-sample"),
        (["--seed", "-1"], "--seed=-1: must be from 0"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--context", "0"], "--context=0: must be a whole number of 1 or more, or all"),
        (["--context", "1e3"], "--context=1e3: must be a whole number"),
        (["--prompt", "a", "--prompt", ""], "--prompt=: empty"),
        (["--set", "model.n_head=4"], "--set model.n_head=4: of a trained run the options of its"),
        (["--set", "model.positional.=3"], "may be changed"),
        (["--set", "model.positional.base=9", "--set", "model.positional.base=8"], "given twice"),
        (["--set", "model.positional.name=alibi"], "may be changed"),
        (["--set", "model.positional"], "may be changed"),
        (["--set", "model.positional.bse=9"], "--set model.positional.bse: no such option. Did yo"),
        (["--set", "model.positional.base=x"], "--set model.positional.base=x: not a valid float"),
    ],
)
def test_sample_mistakes(cli: Cli, arguments: list[str], message: str) -> None:
    assert cli("train", *TINY, "trainer.max_steps=1").code == 0
    outcome = cli("sample", "latest", *arguments)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_eval_agrees_with_training(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    outcome = cli("eval", "run", "--checkpoint", "last")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    evaluated = json.loads(Path("run/eval.json").read_text())["last"]
    for key in ("val_loss", "val_perplexity", "val_bits_per_byte"):
        assert evaluated[key] == result[key]
    assert {"train_loss", "train_perplexity", "train_bits_per_byte"} <= evaluated.keys()


def test_eval_at_other_lengths(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=learned", "hydra.run.dir=run").code == 0
    outcome = cli("eval", "run", "--lengths", "16,4,8", "--by-position")
    assert outcome.code == 0, outcome.err
    assert "undefined: learned has 8 positions" in " ".join(outcome.out.split())
    found = json.loads(Path("run/eval.json").read_text())["best"]
    assert [*found["lengths"]] == ["4", "8", "16"]
    four, eight, sixteen = found["lengths"].values()
    assert eight["loss"] == found["val_loss"] and four["loss"] != eight["loss"]
    assert sixteen["loss"] is None and sixteen["perplexity"] is None
    assert {name: len(losses) for name, losses in found["by_position"].items()} == {"4": 4, "8": 8}
    page = Path("run/eval/best.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2 and "undefined" in page
    for name in ("lengths", "by_position"):
        assert Path(f"run/eval/best_{name}.png").read_bytes().startswith(b"\x89PNG")

    # A later call adds to what is known of the same weights, and drops what is of others.
    assert cli("eval", "run", "--checkpoint", "last").code == 0
    entries = json.loads(Path("run/eval.json").read_text())
    assert entries["best"] == found and "lengths" not in entries["last"]
    assert cli("eval", "run").code == 0
    assert json.loads(Path("run/eval.json").read_text())["best"] == found
    assert cli("eval", "run", "--lengths", "2").code == 0
    more = json.loads(Path("run/eval.json").read_text())["best"]
    assert {*more["lengths"]} == {"2", "4", "8", "16"}
    assert not Path("run/eval/best_by_position.png").exists()  # it was of the earlier page
    assert cli("train", "resume=run", "trainer.max_steps=20").code == 0
    assert cli("eval", "run").code == 0
    changed = json.loads(Path("run/eval.json").read_text())["best"]
    if changed["weights_sha256"] != found["weights_sha256"]:
        assert "lengths" not in changed


def test_a_run_from_before_an_option_keeps_its_meaning(cli: Cli) -> None:
    """Options added later stand in no older config.yaml, and mean there what was before."""
    later = {
        "rope": ("fraction", "scaling", "factor", "n_kv_head", "logit_softcap"),
        "alibi": ("slopes", "n_kv_head", "logit_softcap"),
    }
    for scheme, options in later.items():
        assert cli("train", *TINY, f"model={scheme}", f"hydra.run.dir={scheme}").code == 0
        config = Path(scheme) / "config.yaml"
        lines = config.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.strip().partition(":")[0] not in options]
        assert len(lines) - len(kept) == len(options)
        assert cli("eval", scheme).code == 0
        found = Path(scheme, "eval.json").read_text()
        config.write_text("".join(kept))
        assert cli("eval", scheme).code == 0
        assert Path(scheme, "eval.json").read_text() == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "8,x"], "--lengths=8,x: not whole numbers; write 32,64,128"),
        (["--lengths", ""], "--lengths=: not whole numbers"),
        (["--lengths", "0,8"], "--lengths=0,8: a context has 1 token or more"),
        (["--lengths", "100000"], "--lengths=100000: the val split has only"),
        (["--set", "model.positional.slopes=learned"], "needs other parameters than this run has"),
    ],
)
def test_eval_mistakes(cli: Cli, arguments: list[str], message: str) -> None:
    assert cli("train", *TINY, "positional=alibi", "trainer.max_steps=1").code == 0
    outcome = cli("eval", "latest", *arguments)
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_sample_prompts_of_a_file_as_json(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    Path("prompts.txt").write_text("the quick\n\nfox\n")
    ask = ["sample", "run", "--max-new-tokens", "9", "--seed", "5"]
    outcome = cli(*ask, "--prompts", "prompts.txt", "--num-samples", "2", "--json")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    told = [(row["prompt"], row["sample"], row["seed"]) for row in rows]
    assert told == [("the quick", 1, 5), ("fox", 1, 5), ("the quick", 2, 6), ("fox", 2, 6)]
    alone = cli(*ask, "--prompt", "fox")
    assert alone.out == "fox" + rows[1]["text"] + "\n"
    Path("empty.txt").write_text("\n\n")
    assert "no line holds a prompt" in cli(*ask, "--prompts", "empty.txt").err
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert "--prompts=latin.txt: not UTF-8 at byte 3" in cli(*ask, "--prompts", "latin.txt").err


@pytest.mark.parametrize("content", ["", "[]", "3", "{", '{"best": 3}', '{"val_loss": 2.2}'])
def test_eval_refuses_a_file_it_did_not_write(cli: Cli, content: str) -> None:
    assert cli("train", *TINY, "trainer.max_steps=1", "hydra.run.dir=run").code == 0
    Path("run/eval.json").write_text(content)
    outcome = cli("eval", "run")
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.err == (
        "minigpt: run/eval.json: not what minigpt eval wrote; delete it and evaluate again\n"
    )
    assert Path("run/eval.json").read_text() == content


def test_too_long_for_the_memory_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's own error, of a tensor that no machine has room for."""
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    loss = GPT.loss

    def huge(self: GPT, tokens: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        if tokens.shape[1] > 8:
            torch.zeros(2**45)
        return loss(self, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GPT, "loss", huge)
    outcome = cli("eval", "run", "--lengths", "4,16")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "out of memory; windows of 16 tokens are too long" in outcome.err
    found = json.loads(Path("run/eval.json").read_text())["best"]
    assert [*found["lengths"]] == ["4"]  # what was found before is kept


def test_two_evaluations_at_once_keep_both(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    code = "import sys; from minigpt.cli import main; sys.exit(main())"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, "eval", "run", "--lengths", length],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for length in ("4", "16")
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert {*json.loads(Path("run/eval.json").read_text())["best"]["lengths"]} == {"4", "16"}


def test_a_trained_run_with_another_scaling(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    scaled = ["--set", "model.positional.scaling=linear", "--set", "model.positional.factor=2"]
    assert cli("eval", "run").code == cli("eval", "run", *scaled).code == 0
    entries = json.loads(Path("run/eval.json").read_text())
    plain, other = entries.values()
    assert plain["weights_sha256"] == other["weights_sha256"]
    assert plain["val_loss"] != other["val_loss"]
    assert "model.positional.factor=2" in [*entries][1]


def test_sample_several_prompts_and_past_the_block(cli: Cli) -> None:
    assert cli("train", *TINY, "positional=alibi", "hydra.run.dir=run").code == 0
    ask = ["sample", "run", "--greedy", "--max-new-tokens", "30"]
    alone = cli(*ask, "--prompt", "the quick brown").out
    both = cli(*ask, "--prompt", "L", "--prompt", "the quick brown").out
    assert alone in both and both.count("--- sample 1 of 1 of ") == 2
    carried_on = cli(*ask, "--prompt", "the quick brown", "--context", "all")
    assert carried_on.code == 0 and carried_on.out[:15] == alone[:15]
    assert cli("train", *TINY, "positional=learned", "hydra.run.dir=ends").code == 0
    ask[1] = "ends"
    assert len(cli(*ask, "--context", "all").out) >= 30  # the most it has
    refused = cli(*ask, "--context", "9")
    assert refused.code == 2
    assert refused.err == "minigpt: --context=9: learned has 8 positions; use that or fewer\n"


def damage(path: Path, how: str) -> None:
    """Spoil a file in one of the ways disks and people do."""
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(random.Random(0).randbytes(500))
    elif how == "text":
        path.write_text("some words\n")
    elif how == "dot":
        path.write_bytes(b".\x80" * 50)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "text", "dot", "missing"])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("checkpoints/best/model.safetensors", ["sample", "run"]),
        ("checkpoints/last/model.safetensors", ["train", "resume=run"]),
        ("checkpoints/last/training.pt", ["train", "resume=run"]),
        ("tokenizer.json", ["sample", "run"]),
        ("config.yaml", ["eval", "run"]),
        ("manifest.json", ["eval", "run"]),
    ],
)
def test_a_damaged_run_is_named(cli: Cli, file: str, command: list[str], how: str) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    Path("run/result.json").unlink()
    damage(Path("run") / file, how)
    outcome = cli(*command)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1, outcome.err
    assert file in outcome.err or "run: has no config.yaml" in outcome.err


def test_foreign_weights(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    assert cli("train", *TINY, "model.n_embd=8", "hydra.run.dir=other").code == 0
    name = "checkpoints/best/model.safetensors"
    (Path("run") / name).write_bytes((Path("other") / name).read_bytes())
    outcome = cli("sample", "run")
    assert outcome.code == 2
    assert "weights of another design" in outcome.err and outcome.err.count("\n") == 1


def test_a_checkpoint_cannot_run_code(cli: Cli) -> None:
    assert cli("train", *TINY, "hydra.run.dir=run").code == 0
    Path("run/result.json").unlink()

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("attacked",)

    torch.save(Attack(), "run/checkpoints/last/training.pt")
    assert cli("train", "resume=run").code == 2
    assert not Path("attacked").exists()


def test_data(cli: Cli) -> None:
    outcome = cli("data", "data=text", "data.path=text.txt")
    assert outcome.code == 0, outcome.err
    for word in ("bytes/token", "50,257", "char", "gpt2", "bpe", "sha256"):
        assert word in outcome.out
    assert cli("data", "dta=text").code == 2


def test_doctor(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0, outcome.err
    for word in ("torch", "device", "precision", "threads", "tokenizer=gpt2", "logger=wandb"):
        assert word in outcome.out
    for scheme in (CONFIGS / "positional").glob("*.yaml"):
        assert f"\n {scheme.stem} " in outcome.out
    assert "FlexAttention has no backward on CPUs" in outcome.out


def test_a_tracker_that_cannot_be_had_leaves_nothing(cli: Cli, workdir: Path) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    outcome = cli("train", *tiny, "logger.mode=online")
    assert outcome.code == 2
    assert outcome.err.startswith("minigpt: logger.mode=online: ") and outcome.err.count("\n") == 1
    assert not (workdir / "runs").exists()


def test_a_mistake_does_not_remove_the_working_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert cli("train", "logger=none", "model.n_head=7", "hydra.run.dir=.").code == 2
    assert empty.is_dir()


def test_a_folder_that_cannot_be_written(cli: Cli) -> None:
    outcome = cli("train", *TINY, "hydra.run.dir=/proc/nowhere")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1 and "/proc/nowhere" in outcome.err


@pytest.mark.parametrize("experiment", sorted((CONFIGS / "experiment").glob("*.yaml")))
def test_every_experiment_runs_a_step(cli: Cli, experiment: Path) -> None:
    outcome = cli(
        *("train", f"experiment={experiment.stem}", "logger=none", "trainer.max_steps=1"),
        *("data=text", "data.path=text.txt", "data.train_fraction=0.8", "trainer.device=cpu"),
        *("trainer.sample_tokens=2", "trainer.batch_size=2"),
    )
    assert outcome.code == 0, outcome.err


MODELS = sorted(
    file.stem for group in ("model", "positional") for file in (CONFIGS / group).glob("*.yaml")
)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs(cli: Cli, workdir: Path, model: str) -> None:
    outcome = cli("train", f"model={model}", *TINY, "trainer.max_steps=2")
    assert outcome.code == 0, outcome.err
    result = json.loads((the_run(workdir / "runs") / "result.json").read_text())
    assert result["parameters"]["positional"] >= 0 and result["val_loss"] > 0


PARTS = [f"{g}={f.stem}" for g in ("ffn", "norm") for f in (CONFIGS / g).glob("*.yaml")]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_part_runs(cli: Cli, part: str) -> None:
    assert cli("train", part, *TINY, "trainer.max_steps=2").code == 0


def test_wandb_runs_of_a_sweep(cli: Cli, workdir: Path) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    outcome = cli("train", "-m", *tiny, "logger.mode=offline", "tokenizer=char,bpe")
    assert outcome.code == 0, outcome.err
    offline = list((workdir / "runs").rglob("offline-run-*/run-*.wandb"))
    assert len(offline) == 2
    assert len({path.parents[2] for path in offline}) == 2
    assert all('"val_loss"' in inspect_wandb(path) for path in offline)
