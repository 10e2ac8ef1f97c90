"""The command line: results, and mistakes, which print one line and create no files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from minigpt.cli import COMMANDS
from minigpt.extras import install
from tests.conftest import TINY, Cli, inspect_wandb, the_run

CONFIGS = Path(__file__).parent.parent / "configs"
MISTAKES = {
    "model.head_gates=3": "model.head_gates=3: must be true or false",
    "model=alibi model.positional.slope=learned": "Did you mean model.positional.slopes",
    "model=rope model.positional.base=inf": "model.positional.base=inf: must be a finite number",
    "optimizer.lr=inf": "optimizer.lr=inf: must be a finite number",
    "positional=cope model.positional.max_position=1000": "exceeds model.block_size=128; use that",
    "attention=null": "attention=null: needs a choice; use one of bigbird, chunked, full",
    "norm=pre,null -m": "norm=pre,null: needs a choice; use one of",
    "model.norm=post": "model.norm=post: is a choice of a config group; use norm=post",
    "model.attention.name=performer": "use attention=performer, which sets features, layers",
    "model.attention.window=4": "an option of attention=sliding_window; choose that too",
    "tokenizer.vocab_size=300": "tokenizer.vocab_size: an option of tokenizer=bpe; choose that",
    "attention=performer model.attention.layers=full": "must be a list; use model.attention.la",
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
    "optimizer.grad_clip=0": "optimizer.grad_clip=0.0: must be above 0, or null",
    "trainer.max_steps=-1": "trainer.max_steps=-1: must be 0 or more",
    "trainer.max_steps=1.5": "trainer.max_steps=1.5: not a valid integer",
    "trainer.max_steps=null": "trainer.max_steps=null: ",
    "trainer.log_every=0": "trainer.log_every=0: must be 1 or more",
    "trainer.grad_accum_steps=3": "trainer.grad_accum_steps=3: must divide trainer.batch_size",
    "trainer.threads=100000": "trainer.threads=100000: this machine has ",
    "trainer.device=tpu": "trainer.device=tpu: not one of auto, cpu, cuda, mps",
    "trainer.precision=fp8": "trainer.precision=fp8: not one of auto, fp32, bf16",
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
    "positional=relative model.positional.max_distance=500": "model.positional.max_distance=500: ",
    "model=bigram positional=t5": "model.positional.name=t5: needs blocks, but model.n_layer=0 has",
    "trainer.device=cpu backend=sdpa model.logit_softcap=9": "on cpu: it has no logit soft-cap",
    "model.positional.factor=2": "model.positional.factor=2.0: has no effect without scaling; set",
    "model.positional.scaling=yarm": "Did you mean yarn?",
    "schedule.final_fraction=2": "schedule.final_fraction=2.0: must be from 0 to 1",
    "data.train_fraction=1": "data.train_fraction=1.0: must be between 0 and 1",
    "seed=-1": "seed=-1: must be from 0",
    "seed=1,2": "seed=1,2: several values; add -m",
    "backend=flax": "backend=flax: no such backend. Did you mean flex?",
    "trainer.device=cpu backend=flex": "does not support training of this design on cpu: FlexAtt",
    "experiment=nano": "experiment=nano: no such experiment.",
    "model=[": "model=[: no such model.",
    "name='${nope}'": "nope",
    "hydra.run.dir='${nope}'": "nope",
    "--config-name=nope": "--config-name=nope: no such config",
    "--foo": "unrecognized arguments: --foo",
    "resume=": "the run's name is empty",
    "data.dir=": "data.dir=: needs a folder, or null",
    "data.document_separator=": "data.document_separator=: must not be empty; use null for no doc",
    "data.document_separator=@": "data.document_separator='@': does not occur in the train split",
    "data.document_separator=[a]": "data.document_separator=['a']: must be one value",
    r"data.document_separator=\d": r"data.document_separator=\d: invalid escape; use \n, \t, \r or",
    r"attention=performer data.document_separator=\n": "attention=performer: cannot mask other",
    "data.document_seperator=x": "Did you mean data.document_separator",
    "resume=nowhere": "resume=nowhere: no such run directory",
    "resume=latest": "latest: no run under runs/ yet",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_print_one_line_and_create_no_files(cli: Cli, workdir: Path, mistake: str) -> None:
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
def test_invalid_text_files_are_reported(
    cli: Cli, workdir: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (workdir / "own.txt").write_bytes(content)
    outcome = cli("train", "logger=none", "data=text", "data.path=own.txt")
    assert outcome.code == 2
    assert message in outcome.err and outcome.err.count("\n") == 1
    assert not (workdir / "runs").exists()


def test_data_text_needs_a_path(cli: Cli) -> None:
    assert "data.path: missing; set it with data.path=VALUE" in cli("train", "data=text").err


def test_unknown_command_suggests_a_known_one(cli: Cli) -> None:
    outcome = cli("trian")
    assert outcome.code == 2
    assert outcome.err.startswith("minigpt: trian: no such command. Did you mean train?")


@pytest.mark.parametrize("command", ["sample", "eval", "inspect"])
def test_a_missing_run_directory_is_reported(cli: Cli, command: str) -> None:
    outcome = cli(command, "nowhere")
    assert outcome.code == 2
    assert outcome.err == (
        "minigpt: RUN=nowhere: no such run directory; give a directory like runs/..., or `latest`\n"
    )


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])  # see below
def test_help_has_an_example(cli: Cli, capfd: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli(command, "--help")
    assert exit_.value.code == 0
    assert f"minigpt {command}" in capfd.readouterr().out.partition("examples:\n")[2]


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["torch", "wandb", "hydra", "yaml", "rich"]),
        (["train", "--help"], ["torch", "wandb", "hydra", "omegaconf"]),
        (["train", "--cfg", "job", "--resolve"], ["torch", "wandb"]),
    ],
)
def test_help_does_not_import(arguments: list[str], absent: list[str]) -> None:
    """Check imports, which is more reliable than timing."""
    code = f"import minigpt.cli, sys\ntry: minigpt.cli.main({arguments})\nexcept SystemExit: 0"
    check = f"{code}\nassert not {set(absent)} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_train_help_lists_groups_and_values(cli: Cli) -> None:
    printed = cli("train", "--help").out
    for line in ("bpe, char, gpt2, tiktoken", "minigpt train model=rope", "optimizer.lr=4e-3 "):
        assert line in printed


@pytest.mark.parametrize(
    ("line", "completion"),
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
    cli: Cli, monkeypatch: pytest.MonkeyPatch, line: str, completion: str
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli("-sc", "query=bash").out.strip() == completion
    assert "complete" in cli("-sc", "install=bash").out


@pytest.mark.parametrize(
    ("command", "offered"),
    [
        *((command, "") for command in ("sample", "inspect", "rm runs/a", "sample --draft")),
        *((command, "runs/sweep ") for command in ("eval", "report", "runs", "eval runs/a")),
    ],
)
def test_shell_completion_of_runs(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch, command: str, offered: str
) -> None:
    (workdir / "runs/sweep/rope").mkdir(parents=True)
    (workdir / "runs/sweep/rope/config.yaml").write_text("{}")
    monkeypatch.setenv("COMP_LINE", f"minigpt {command} runs/")
    assert cli("-sc", "query=bash").out == f"{offered}runs/sweep/rope\n"


def test_shell_completion_of_rm_offers_sweeps(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs/sweep/rope", "runs/group/alibi"):
        (workdir / folder).mkdir(parents=True)
        (workdir / folder / "config.yaml").write_text("{}")
    (workdir / "runs/sweep/sweep.json").write_text("{}")
    monkeypatch.setenv("COMP_LINE", "minigpt rm ")
    assert cli("-sc", "query=bash").out == "runs/group/alibi runs/sweep runs/sweep/rope\n"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_completion_in_a_real_zsh(workdir: Path) -> None:
    """Keys in a terminal: commands, choices, and runs are completed at Tab."""
    (workdir / "runs/a/rope").mkdir(parents=True)
    (workdir / "runs/a/rope/config.yaml").write_text("{}")
    (workdir / ".zshrc").write_text("PROMPT='$ '\n" + 'eval "$(minigpt -sc install=zsh)"\n')
    keys = ["minigpt doc\t", "\x15minigpt train norm=sand\t", "\x15minigpt sample runs/\t"]
    keys += ["\x15true; FOO=1 minigpt insp\t"]
    shown = _typed_in_zsh(workdir, keys)
    for completed in (
        *("minigpt doctor", "train norm=sandwich", "sample runs/a/rope", "minigpt inspect"),
    ):
        assert completed in shown


def _typed_in_zsh(home: Path, keys: list[str]) -> str:
    """Return what a terminal shows, without its control sequences."""
    import pty

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ZDOTDIR": str(home), "TERM": "dumb"}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(home)
        os.execvpe("zsh", ["zsh", "-i"], environment)
    shown = _read_until(terminal, "$ ")
    for typed in keys:
        os.write(terminal, typed.encode())
        shown += _read_until(terminal, None)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)
    return shown


def _read_until(terminal: int, end: str | None, quiet: float = 3.0) -> str:
    """Read until `end`, or until nothing came for some seconds."""
    text = ""
    while (end is None or end not in text) and select.select([terminal], [], [], quiet)[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


@pytest.mark.parametrize("order", ["flag first", "flag last"])
def test_sweep_trains_every_combination(cli: Cli, workdir: Path, order: str) -> None:
    options = [*TINY, "model=rope,alibi", "seed=1,2", "trainer.max_steps=2"]
    outcome = cli("train", *(["-m", *options] if order == "flag first" else [*options, "-m"]))
    assert outcome.code == 0, outcome.err
    runs = sorted(path.parent for path in (workdir / "runs").rglob("result.json"))
    assert len(runs) == 4
    configs = [(run / "config.yaml").read_text() for run in runs]
    assert sum("name: alibi" in config for config in configs) == 2
    group = runs[0].parent.name
    assert all(f"group: {group}" in config for config in configs)


def test_command_line_choices_override_a_preset(cli: Cli) -> None:
    assert cli("train", *TINY, "model=llama", "positional=alibi", "norm=post").code == 0
    from minigpt.config.saved import read_config

    model = read_config(the_run(Path("runs")) / "config.yaml").model
    assert (model.positional.name, model.norm.placement) == ("alibi", "post")
    assert (model.norm.kind, model.ffn.name, model.embedding.name) == (
        "rmsnorm",
        "swiglu",
        "untied",
    )


@pytest.mark.fast
def test_contents_of_a_run_directory(cli: Cli, workdir: Path) -> None:
    outcome = cli("train", *TINY)
    assert outcome.code == 0, outcome.err
    run = the_run(workdir / "runs")
    assert f"\nnext       minigpt sample {run.relative_to(workdir)}\n" in outcome.out
    assert cli("sample", str(run)).code == 0
    files = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert files == {
        *("config.yaml", "manifest.json", "result.json", "tokenizer.json", "metrics.jsonl"),
        *("samples.txt", "checkpoints"),
    }
    result = json.loads((run / "result.json").read_text())
    keys = {
        *("status", "seed", "steps", "best_step", "train_loss", "val_loss", "best_val_loss"),
        *("val_perplexity", "val_bits_per_byte", "parameters", "flops_per_token"),
        *("tokens_per_second", "seconds", "peak_memory_bytes", "device"),
    }
    assert keys <= result.keys()
    assert all(result[key] is not None for key in keys)
    assert set(result["parameters"]) == {"total", "active", "non_embedding", "positional"}
    assert result["status"] == "finished" and result["steps"] == 12
    manifest = json.loads((run / "manifest.json").read_text())
    assert {"command", "commit", "versions", "device", "data_sha256", "tokenizer_sha256"} <= set(
        manifest
    )


def test_a_saved_config_trains_the_same_run(cli: Cli, workdir: Path) -> None:
    assert cli("train", *TINY, "hydra.run.dir=first").code == 0
    again = cli("train", "--config-dir", "first", "--config-name", "config", "seed=2")
    assert again.code == 0, again.err
    second = the_run(workdir / "runs")
    configs = [
        (run / "config.yaml").read_text().splitlines()[3:] for run in (Path("first"), second)
    ]
    assert set(configs[0]) ^ set(configs[1]) == {"seed: 1", "seed: 2"}


def test_run_names_contain_the_overrides(cli: Cli) -> None:
    tiny = [*TINY, "trainer.max_steps=1"]
    assert cli("train", *tiny, "model=llama", "positional=alibi").code == 0
    assert "_llama_text_alibi_" in the_run(Path("runs")).name
    assert cli("train", "-m", *tiny, "model=rope,alibi", "seed=1,2").code == 0
    names = {path.parent.name for path in Path("runs").glob("*_sweep_*/*/manifest.json")}
    assert names == {f"model={m}_seed={s}" for m in ("rope", "alibi") for s in (1, 2)}


def test_values_with_special_characters_need_no_quotes(cli: Cli, workdir: Path) -> None:
    (workdir / "文 [1].txt").write_text("\ufeff" + "some text, 日本\n" * 99, encoding="utf-8")
    outcome = cli("train", *TINY, "data.path=文 [1].txt", "name=it's", "trainer.sample_prompt=日")
    assert outcome.code == 0, outcome.err
    assert "\ufeff" not in (the_run(workdir / "runs") / "tokenizer.json").read_text()


def test_a_closed_pipe_does_not_stop_a_run(workdir: Path) -> None:
    command = f"{sys.executable} -m minigpt.cli train {' '.join(TINY)} hydra.run.dir=run | head -1"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=120)
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"


def test_out_of_memory_prints_one_line(cli: Cli) -> None:
    outcome = cli("train", *TINY, "model.n_embd=2000000", "model.n_head=1")
    assert outcome.code == 1
    assert outcome.err.startswith("minigpt: out of memory; lower model.n_embd")
    assert outcome.err.count("\n") == 1


def test_a_run_is_not_overwritten(cli: Cli, tiny_run: Path) -> None:
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    outcome = cli("train", *TINY, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "contains a run already" in outcome.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def damage(path: Path, how: str) -> None:
    """Damage or delete a file."""
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
def test_damaged_files_are_reported(
    cli: Cli, tiny_run: Path, file: str, command: list[str], how: str
) -> None:
    Path("run/result.json").unlink()
    damage(Path("run") / file, how)
    outcome = cli(*command)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1, outcome.err
    assert file in outcome.err or "run: has no config.yaml" in outcome.err


def test_weights_of_another_model_are_rejected(cli: Cli, tiny_run: Path) -> None:
    assert cli("train", *TINY, "model.n_embd=8", "hydra.run.dir=other").code == 0
    for name in ("checkpoints/best/model.safetensors", "checkpoints/best/checksums.json"):
        (Path("run") / name).write_bytes((Path("other") / name).read_bytes())
    outcome = cli("sample", "run")
    assert outcome.code == 2
    assert "does not fit the model of config.yaml" in outcome.err and outcome.err.count("\n") == 1


def test_loading_a_checkpoint_does_not_execute_code(cli: Cli, tiny_run: Path) -> None:
    Path("run/result.json").unlink()

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("attacked",)

    torch.save(Attack(), "run/checkpoints/last/training.pt")
    assert cli("train", "resume=run").code == 2
    assert not Path("attacked").exists()


def test_data_compares_tokenizers(cli: Cli) -> None:
    outcome = cli("data", "data=text", "data.path=text.txt")
    assert outcome.code == 0, outcome.err
    for word in ("bytes/token", "50,257", "char", "gpt2", "bpe", "sha256"):
        assert word in outcome.out
    assert "documents" not in outcome.out
    assert cli("data", "dta=text").code == 2


def test_data_reports_documents(cli: Cli, workdir: Path) -> None:
    (workdir / "text.txt").write_text("ab\n\nabcdef\n\na\n\nabc\n\nabcdefg")
    outcome = cli(
        *("data", "data=text", "data.path=text.txt", "data.train_fraction=0.7"),
        *("tokenizer=char", r"data.document_separator=\n\n"),
    )
    assert outcome.code == 0, outcome.err
    # Lengths in train: 4, 8, 3 and 3, the last one split; in validation: 2 and 7.
    row = outcome.out.splitlines()[-3]
    assert row.replace("│", " ").split() == ["char", "4", "2", "3", "8"]


def test_doctor_says_what_works_and_what_is_missing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0, outcome.err
    verdict = [line.split()[0] for line in outcome.out.splitlines()[:5]]
    assert verdict == ["works", "device", "missing", "get", "more"]
    assert outcome.out.startswith("works    yes: ")
    for word in ("torch", "precision", "threads", "tokenizer=gpt2", "logger=wandb", "--quantize"):
        assert f" {word} " in outcome.out

    real = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("torchao", "ray"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("minigpt.run.environment.version", without)
    lines = cli("doctor").out.splitlines()
    assert lines[2] == "missing  minigpt tune, --quantize"
    assert lines[3] == f"get it   {install('ray', 'quantize')}"


def test_doctor_says_that_a_device_does_not_compute(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr("minigpt.run.environment.torch.ones", fail)
    lines = cli("doctor").out.splitlines()
    assert lines[0].startswith("works    no: cpu does not compute: no kernel image")


def test_the_verdict_of_doctor_comes_first_and_soon(workdir: Path) -> None:
    """Before the slower checks, and within a small multiple of importing torch."""

    def seconds(*command: str) -> float:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        passed = time.monotonic() - start
        process.kill()
        process.communicate()
        return passed

    torch_alone = min(seconds("-c", "import torch") for _ in range(3))
    verdict = min(seconds("-u", "-m", "minigpt.cli", "doctor") for _ in range(3))
    assert verdict < 2 * torch_alone + 1


def test_doctor_shows_tables_of_combinations(cli: Cli) -> None:
    outcome = cli("doctor", "--table", "positional")
    assert outcome.code == 0, outcome.err
    for scheme in (CONFIGS / "positional").glob("*.yaml"):
        assert f"\n {scheme.stem} " in outcome.out
    assert "FlexAttention has no backward on CPUs" in outcome.out
    outcome = cli("doctor", "--table", "attention")
    for group in ("positional", "attention", "ffn", "norm"):
        for choice in (CONFIGS / group).glob("*.yaml"):
            assert f" {choice.stem} " in outcome.out or f" {group}={choice.stem} " in outcome.out
    assert "attention=performer: it computes no scores" in outcome.out
    assert cli("doctor", "--table", "norm").code == 2


def test_an_unavailable_tracker_creates_no_files(cli: Cli, workdir: Path) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    outcome = cli("train", *tiny, "logger.mode=online")
    assert outcome.code == 2
    assert outcome.err.startswith("minigpt: logger.mode=online: ") and outcome.err.count("\n") == 1
    assert not (workdir / "runs").exists()


def test_a_mistake_does_not_delete_the_working_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert cli("train", "logger=none", "model.n_head=7", "hydra.run.dir=.").code == 2
    assert empty.is_dir()


def test_an_unwritable_run_directory_prints_one_line(cli: Cli) -> None:
    outcome = cli("train", *TINY, "hydra.run.dir=/proc/nowhere")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1 and "/proc/nowhere" in outcome.err


EXPERIMENTS = sorted(
    file
    for file in (CONFIGS / "experiment").rglob("*.yaml")
    if file.parent.name != "journey"  # one sweep in tests/studies/test_journey.py
)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_trains_one_step(cli: Cli, file: Path) -> None:
    name = file.relative_to(CONFIGS / "experiment").with_suffix("").as_posix()
    settings = OmegaConf.load(file)
    params = OmegaConf.select(settings, "hydra.sweeper.params", default={})
    deep = "model.n_layer" not in params and OmegaConf.select(settings, "model.n_layer") in (6, 8)
    if params:
        assert "sweeps over" in cli("train", f"experiment={name}").err
    base = []
    if OmegaConf.select(settings, "init") == "":
        assert cli("train", *TINY, "hydra.run.dir=base").code == 0
        base = ["init=base"]
    outcome = cli(
        *("train", f"experiment={name}", "logger=none", "trainer.max_steps=1"),
        *(["-m"] if params else []),
        *(f"{key}={str(values).split(',')[-1]}" for key, values in params.items()),  # a single job
        *("data=text", "data.path=text.txt", "data.train_fraction=0.8", "trainer.device=cpu"),
        *("trainer.sample_tokens=2", "trainer.batch_size=2", "trainer.grad_accum_steps=1"),
        *base,
        *(["model.n_layer=2"] if deep else []),  # to save time
        "trainer.compile=false",
    )
    assert outcome.code == 0, outcome.err


MODELS = [*sorted(file.stem for file in (CONFIGS / "model").glob("*.yaml")), "alibi"]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_preset_trains(cli: Cli, workdir: Path, model: str) -> None:
    layers = "model.n_layer=0" if model == "bigram" else "model.n_layer=1"
    outcome = cli("train", f"model={model}", *TINY, "trainer.max_steps=2", layers)
    assert outcome.code == 0, outcome.err
    result = json.loads((the_run(workdir / "runs") / "result.json").read_text())
    assert result["parameters"]["positional"] >= 0 and result["val_loss"] > 0


def test_a_sweep_records_one_wandb_run_per_job(cli: Cli, workdir: Path) -> None:
    tiny = [option for option in TINY if option != "logger=none"]
    outcome = cli("train", "-m", *tiny, "logger.mode=offline", "tokenizer=char,bpe")
    assert outcome.code == 0, outcome.err
    offline = list((workdir / "runs").rglob("offline-run-*/run-*.wandb"))
    assert len(offline) == 2
    assert len({path.parents[2] for path in offline}) == 2
    assert all('"val_loss"' in inspect_wandb(path) for path in offline)
