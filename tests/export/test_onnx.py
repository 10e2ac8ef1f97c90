"""`minigpt export --to onnx`: onnxruntime computes what minigpt computes, of every design."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Engine

from minigpt.errors import UserError
from minigpt.export.onnx_file import TOKENIZER, require_exportable, write_onnx
from minigpt.model import ModelConfig
from minigpt.model.positional import POSITIONAL
from tests.conftest import TINY, Cli
from tests.export.test_export import failing, left
from tests.model.tiny import N_VOCAB, random_model, random_tokens, tiny_config

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.slow  # the exporter takes seconds for each
@pytest.mark.parametrize("positional", POSITIONAL.names())
def test_every_scheme_leaves(tmp_path: Path, positional: str) -> None:
    """Logits of all batches and lengths up to the context, within several times the rounding."""
    config = tiny_config(positional, n_layer=1)
    model = random_model(config, N_VOCAB)
    path = tmp_path / "model.onnx"
    assert write_onnx(path, model, "{}", random_tokens(1, 40, N_VOCAB)[0]) < 1e-5
    session = onnxruntime.InferenceSession(str(path))
    for batch, time in ((1, 1), (3, config.block_size), (2, 5)):
        tokens = random_tokens(batch, time, N_VOCAB)
        (logits,) = session.run(None, {"tokens": tokens.numpy()})
        with torch.no_grad():
            ours = model(tokens)
        torch.testing.assert_close(torch.from_numpy(logits), ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("model.ffn.name=moe", tiny_config(ffn="moe")),
        ("model.attention.name=performer", tiny_config("nope", attention="performer")),
        ("model.attention.name=landmark", tiny_config(attention="landmark")),
    ],
)
def test_what_the_exporter_cannot_express_is_refused(key: str, config: ModelConfig) -> None:
    with pytest.raises(UserError, match=f"^{key}: .*; train a design without it$"):
        require_exportable(config)
    require_exportable(tiny_config())


def interrupted(*_: Any, **__: Any) -> None:
    """Fail by Ctrl-C, which a library in between replaces by its own error."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        sleep(10)
    except KeyboardInterrupt:
        raise RuntimeError("a pass of the compiler failed") from None


def as_the_exporter_fails(*_: Any, **__: Any) -> None:
    reason = ValueError("## Exception summary\n\n\x1b[31mthe reason\x1b[0m\n- more of it")
    raise RuntimeError("\x1b[96mThis is step 1/3\x1b[0m of exporting the model") from reason


def test_a_run_leaves_as_a_program(
    cli: Cli, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", *TINY, "trainer.precision=fp32", "hydra.run.dir=run").code == 0
    before = left(Path())

    def fails(code: int, message: str) -> None:
        failed = cli("export", "run", "--to", "onnx", "new/model.onnx")
        assert failed.code == code and message in failed.err, failed.err
        assert failed.err.count("\n") <= 1 and left(Path()) == before

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", failing(RuntimeError("an operator\nwhich ...")))
        fails(1, "torch cannot export this design (RuntimeError: an operator)")
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", failing(KeyboardInterrupt()))
        fails(130, "")
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", interrupted)
        fails(130, "")
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", as_the_exporter_fails)
        fails(1, "torch cannot export this design (ValueError: the reason)")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        fails(2, "onnxruntime and onnxscript are not installed")
    done = cli("export", "run", "--to", "onnx", "model.onnx")
    assert done.code == 0, done.err
    assert "run (best) as an ONNX program" in done.out and "largest difference" in done.out
    content = Path("model.onnx").read_bytes()
    for folder in (Path.cwd(), Path(torch.__file__).parent, Path(__file__).parent.parent.parent):
        assert str(folder).encode() not in content
    assert "exists" in cli("export", "run", "--to", "onnx", "model.onnx").err

    # the file and its tokenizer continue a text as the run does
    session = onnxruntime.InferenceSession("model.onnx")
    engine = Engine.from_str(session.get_modelmeta().custom_metadata_map[TOKENIZER])
    tokens: list[Any] = engine.encode("Line").ids
    for _ in range(4):
        (logits,) = session.run(["logits"], {"tokens": np.array([tokens])})
        tokens.append(int(logits[0, -1].argmax()))
    sampled = cli("sample", "run", "--greedy", "--prompt", "Line", "--max-new-tokens", "4")
    assert engine.decode(tokens) + "\n" == sampled.out
