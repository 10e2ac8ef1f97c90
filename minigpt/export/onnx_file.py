"""An ONNX file: logits of every position of a text, written by torch's exporter and compared."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import UserError, first_line
from minigpt.export.check import CHECKED_TOKENS, failing, largest_difference, windows
from minigpt.export.fields import option
from minigpt.extras import install
from minigpt.model import GPT, ModelConfig
from minigpt.model.backends import BackendConfig

INPUT, OUTPUT = "tokens", "logits"
TOKENIZER = "tokenizer.json"  # the key of the metadata with its content
# Choices that torch's exporter cannot express for every batch and length.
NOT_EXPORTED = {
    "model.ffn.name": {"moe": "computes each expert on as many tokens as choose it"},
    "model.attention.name": {
        "performer": "loops over parts of the text",
        "landmark": "adds rows to the text, whose number depends on its length",
    },
}


def require_exportable(config: ModelConfig) -> None:
    """Raise UserError for a design with one of NOT_EXPORTED."""
    for key, choices in NOT_EXPORTED.items():
        value = option(config, key)
        if value in choices:
            why = f"{choices[value]}, and torch's exporter cannot express it"
            raise UserError(f"{key}={value}: {why}; train a design without it")


def import_onnxruntime() -> Any:
    """Return the module. Raises UserError if it, or what torch's exporter needs, is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        why = f"onnxruntime and onnxscript are not installed ({first_line(error)})"
        raise UserError(f"minigpt export: {why}; {install('onnx')}") from None
    return onnxruntime


def write_onnx(path: Path, model: GPT, tokenizer: str, tokens: Tensor) -> float:
    """Write a model in fp32 to a file. Return the largest difference of logits with onnxruntime.

    The file computes logits (batch, time, vocabulary) from token ids (batch, time) of any batch and
    time. `tokenizer`: the content of its tokenizer.json, which the file has as metadata. `tokens`:
    at least 2 (n,), compared as by `check_logits`, and in two rows. Raises Failure if torch cannot
    export the design, or above the bound. `require_exportable` must allow it.
    """
    onnxruntime = import_onnxruntime()
    plain = GPT(replace(model.config, backend=BackendConfig("eager")), model.n_ordinary).eval()
    plain.load_state_dict(model.state_dict())
    tokens = tokens[:CHECKED_TOKENS].long()
    n = min(len(tokens) // 2, max(model.config.block_size // 2, 1))
    rows = tokens[: 2 * n].view(2, n)
    dynamic = torch.export.Dim.DYNAMIC
    with failing("torch cannot export this design"), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            plain,
            (rows,),
            dynamo=True,
            dynamic_shapes=({0: dynamic, 1: dynamic},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        _forget_sources(program.model)
        program.model.metadata_props[TOKENIZER] = tokenizer
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with failing("onnxruntime cannot load the file"):
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def read(ids: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: ids.numpy()})[0])

    batches = (*windows(tokens, model), rows, rows[:1, :1])
    return largest_difference("onnxruntime", read, model, batches)


def _forget_sources(model: Any) -> None:
    """Remove what the exporter notes of the program: lines of it, with folders of this machine."""
    graph = model.graph
    for part in (graph, *graph.all_nodes(), *graph.initializers.values(), *graph.inputs):
        part.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of torch's exporter, which are of packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
