"""`minigpt export`: the command, its check, and what it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from minigpt.commands.export import FORMATS
from minigpt.export import check, folder
from minigpt.export.check import import_transformers
from minigpt.run.load import TrainedRun
from tests.conftest import TEXT, TINY, Cli

GPT2 = ("model=gpt2", "embedding=untied", "model.vocab_multiple=64", "trainer.precision=fp32")
# Continues a newline with the likeliest tokens, with transformers alone.
PROGRAM = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, n = sys.argv[1], int(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("Line ", return_tensors="pt")
ids = model.generate(**prompt, max_new_tokens=n, do_sample=False)
print(tokenizer.decode(ids[0]))
assert not any(name.startswith("minigpt") for name in sys.modules)
"""


@pytest.fixture
def gpt2_run(cli: Cli) -> Path:
    """Return a trained run in the working directory that can leave."""
    done = cli("train", *TINY, *GPT2, "model.block_size=32", "hydra.run.dir=run")
    assert done.code == 0, done.err
    return Path("run")


def left(where: Path) -> set[str]:
    """Return the names of a folder's entries, also hidden ones."""
    return {path.name for path in where.iterdir()}


def test_a_run_leaves_and_is_read_again(cli: Cli, gpt2_run: Path) -> None:
    done = cli("export", "run", "--to", "hf", "out/folder")
    assert done.code == 0, done.err
    assert "run (best) as GPT-2" in done.out and "written to out/folder" in done.out
    found = re.search(
        r"largest difference of logits: (\S+), in fp32 after each of 25[0-9]", done.out
    )
    assert found is not None and float(found[1]) < 1e-4, done.out
    n_val = len(TrainedRun.load("run").tokens().val.tokens)
    assert f"all {n_val} equal" in done.out
    assert left(Path("out")) == {"folder"}
    out = Path("out/folder")
    assert {"README.md", "learning_curve.png", "generation_config.json"} <= left(out)
    everything = "".join(path.read_text("utf-8") for path in out.glob("*.[jm][sd]*"))
    assert str(Path.cwd()) not in everything
    card = (out / "README.md").read_text(encoding="utf-8")
    for part in (
        "hydra.run.dir=run",
        "| seed | 1 |",
        "model.vocab_multiple=64",
        "sha256",
        "](learn",
    ):
        assert part in card, part

    # the same validation loss, and the same text
    for name in ("run", "out/folder"):
        assert cli("eval", name).code == 0
    losses = [json.loads(Path(name, "eval.json").read_text()) for name in ("run", "out/folder")]
    assert losses[0]["best"]["val_loss"] == losses[1]["exported"]["val_loss"]
    options = ("--prompt", "Line ", "--greedy", "--max-new-tokens", "20")
    sampled = cli("sample", "run", *options)
    assert sampled.out == cli("sample", "out/folder", *options).out and sampled.code == 0
    command = [sys.executable, "-c", PROGRAM, "out/folder", "20"]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout == sampled.out
    assert cli("inspect", "out/folder", "--prompt", "Line ").code == 0

    # the text is found by --set too; one set of weights; a folder is exported again
    Path("text.txt").rename("other.txt")
    assert cli("eval", "out/folder").code == 2
    assert cli("eval", "out/folder", "--set", "data.path=other.txt").code == 0
    assert "has one set of weights" in cli("sample", "out/folder", "--checkpoint", "best").err
    Path("other.txt").rename("text.txt")
    again = cli("export", "out/folder", "--to", "hf", "again")
    assert again.code == 0, again.err
    same = ("config.json", "model.safetensors", "tokenizer_config.json")
    assert all(Path("again", name).read_bytes() == (out / name).read_bytes() for name in same)


def test_a_folder_of_transformers_is_read(cli: Cli, gpt2_run: Path) -> None:
    """As save_pretrained writes it, with names of the bare model, in bf16, without minigpt.json."""
    assert cli("export", "run", "--to", "hf", "out").code == 0
    transformers = import_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained("out", dtype=torch.bfloat16)
    model.save_pretrained("foreign")
    transformers.AutoTokenizer.from_pretrained("out").save_pretrained("foreign")
    assert not Path("foreign/minigpt.json").exists()
    trained = TrainedRun.load("foreign", device="cpu")
    assert trained.config.data.name == "tinyshakespeare" and trained.run.data_sha256 is None
    tokens = torch.tensor([trained.tokenizer.encode("Line 7")])
    expected = model.float()(tokens).logits
    torch.testing.assert_close(trained.model.float()(tokens), expected, rtol=1e-4, atol=1e-4)
    config = json.loads(Path("foreign/config.json").read_text())
    for key, value, message in (
        ("activation_function", "tanh", "activation_function=tanh: minigpt has only gelu"),
        ("scale_attn_weights", False, "scale_attn_weights=False: minigpt reads only True"),
        ("model_type", "t5", "model_type=t5: minigpt reads only gpt2, llama"),
        ("n_embd", 32, "has the shape"),
    ):
        Path("foreign/config.json").write_text(json.dumps({**config, key: value}))
        refused = cli("sample", "foreign")
        assert refused.code == 2 and message in refused.err, refused.err
        assert refused.err.count("\n") == 1


def test_a_design_that_cannot_leave_is_refused_before_work(cli: Cli, tiny_run: Path) -> None:
    refused = cli("export", "run", "--to", "hf", "out")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith("minigpt: model.qk_norm=true: ")
    assert refused.err.endswith("as GPT-NeoX: model.qk_norm=false\n")
    assert not Path("out").exists() and not list(Path().glob(".out*"))


@pytest.mark.parametrize("objective", ["prefix", "masked", "denoise"])
def test_only_models_of_the_next_token_leave(cli: Cli, workdir: Path, objective: str) -> None:
    """The same line in every format. Of a design that leaves with objective=causal."""
    options = (f"objective={objective}", "trainer.sample_every=null", "hydra.run.dir=run")
    done = cli("train", *TINY, *GPT2, "model.vocab_multiple=1", *options)
    assert done.code == 0, done.err
    for name in FORMATS:
        refused = cli("export", "run", "--to", name, "out")
        assert refused.code == 2 and refused.err.count("\n") == 1
        assert refused.err.startswith(f"minigpt: objective={objective}: its model.architecture=")
        assert refused.err.endswith("; export a run with objective=causal\n")
        assert not Path("out").exists()


def test_another_folder_is_never_replaced(cli: Cli, tiny_run: Path) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    refused = cli("export", "run", "--to", "hf", "full")
    assert refused.code == 2 and "PATH=full: is not empty" in refused.err
    assert "PATH=text.txt: is not a folder" in cli("export", "run", "--to", "hf", "text.txt").err
    for path in ("text.txt/out", "text.txt/new/out"):
        for kind in ("hf", "gguf", "onnx"):
            refused = cli("export", "run", "--to", kind, path)
            line = f"minigpt: PATH={path}: cannot be written (Not a directory); name a path"
            assert refused.code == 2 and refused.err.startswith(line), refused.err
    assert cli("export", "run", "--to", "other", "out").code == 2
    assert cli("export", "run", "out").code == 2


def corrupted(write: Callable[..., Any]) -> Callable[..., Any]:
    """Return `save_file` that changes one weight."""

    def save(weights: dict[str, torch.Tensor], *rest: Any, **options: Any) -> None:
        weights["lm_head.weight"][3, 5] += 0.5
        write(weights, *rest, **options)

    return save


def corrupted_reading(read: Callable[..., Any]) -> Callable[..., Any]:
    """Return `to_ours` that changes one weight."""

    def to_ours(*arguments: Any) -> dict[str, torch.Tensor]:
        weights = read(*arguments)
        weights["final_norm.bias"][3] += 1
        return weights

    return to_ours


def failing(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_nothing_is_left_of_a_failed_export(
    cli: Cli, gpt2_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left(Path())

    def export(code: int, message: str) -> None:
        failed = cli("export", "run", "--to", "hf", "new/out")
        assert failed.code == code and message in failed.err, failed.err
        assert left(Path()) == before

    with monkeypatch.context() as patch:
        patch.setattr(folder, "save_file", corrupted(folder.save_file))
        export(1, "logits of transformers differ by")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "save_file", failing(KeyboardInterrupt()))
        export(130, "")
    for error in (SafetensorError("No space left on device"), OSError(28, "No space left on dev")):
        with monkeypatch.context() as patch:
            patch.setattr(folder, "save_file", failing(error))
            export(2, "minigpt: PATH=new/out: cannot be written (No space left on dev")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "to_tokenizer_json", lambda *_: '{"broken": 1}')
        export(1, "transformers cannot load the tokenizer")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "to_ours", corrupted_reading(folder.to_ours))
        export(1, "logits of minigpt, which reads the folder, differ by")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        export(2, "transformers, which checks the result, is not installed")


def test_a_signal_leaves_nothing(gpt2_run: Path) -> None:
    """SIGTERM while the logits are compared."""
    code = (
        "import os, signal, sys; from minigpt.export import check; from minigpt.cli import main\n"
        "check.check_logits = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(['export', 'run', '--to', 'hf', 'out']))"
    )
    before = left(Path())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 128 + 15, done.stderr
    assert left(Path()) == before


def test_a_tokenizer_that_differs_is_found(
    cli: Cli, gpt2_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = folder.to_tokenizer_json

    def wrong(*arguments: Any) -> str:
        saved = json.loads(right(*arguments))
        vocabulary = saved["model"]["vocab"]
        vocabulary["o"], vocabulary["e"] = vocabulary["e"], vocabulary["o"]
        return json.dumps(saved)

    monkeypatch.setattr(folder, "to_tokenizer_json", wrong)
    failed = cli("export", "run", "--to", "hf", "out")
    assert failed.code == 1 and "of the validation text is [" in failed.err
    assert not Path("out").exists() and check.CHECKED_TOKENS == 256 and "brown" in TEXT
