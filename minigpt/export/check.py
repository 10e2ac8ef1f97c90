"""The proof of an export: transformers loads the folder and computes what the run computes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import Failure, UserError, first_line
from minigpt.export.folder import read_folder
from minigpt.extras import install
from minigpt.model import GPT
from minigpt.tokenizer import Tokenizer

CHECKED_TOKENS = 256  # of the validation text, in windows of at most block_size
# Of the largest logit, and at least of 1. In fp32 the sums of both sides differ in their order.
TOLERANCE = 1e-4


def import_transformers() -> Any:
    """Return the module, without messages and network. Raises UserError if it is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("torchao", "torch.utils._pytree"):  # what transformers imports has warnings
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import transformers
    except ImportError as error:
        why = f"transformers, which checks the result, is not installed ({first_line(error)})"
        raise UserError(f"minigpt export: {why}; {install('hf')}") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def check_logits(folder: Path, model: GPT, tokens: Tensor) -> float:
    """Return the largest difference of logits between a folder, read by transformers, and a model.

    In fp32 on the CPU, after each of the first CHECKED_TOKENS of `tokens` (n,). `model` must be
    there, in fp32. Raises Failure if the folder does not load completely, or above TOLERANCE.
    """
    transformers = import_transformers()
    with failing("transformers cannot load the model"):
        theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    for what, names in report.items():
        if names:
            raise Failure(f"export: transformers reports {what.replace('_', ' ')}: {list(names)}")
    theirs.eval()
    with torch.no_grad():
        return largest_difference(
            "transformers", lambda ids: theirs(ids).logits, model, windows(tokens, model)
        )


def check_reading(folder: Path, model: GPT, tokens: Tensor) -> float:
    """Return the largest difference of logits between a folder, read by minigpt, and a model.

    As `check_logits`.
    """
    with failing("minigpt cannot read the folder"):
        read = read_folder(folder).model
    name = "minigpt, which reads the folder,"
    return largest_difference(name, read, model, windows(tokens, model))


def windows(tokens: Tensor, model: GPT) -> list[Tensor]:
    """Return the first CHECKED_TOKENS of a text (n,) in rows (1, t) of the context of a model."""
    return list(tokens[:CHECKED_TOKENS].long()[None].split(model.config.block_size, dim=1))


def largest_difference(
    name: str, read: Callable[[Tensor], Tensor], model: GPT, batches: Iterable[Tensor]
) -> float:
    """Return the largest difference of logits between what was written and a model, in fp32.

    `name`: what reads it, with `read`. `batches`: token ids (b, t). Raises Failure above TOLERANCE.
    """
    largest, bound = 0.0, TOLERANCE
    with model.evaluating():
        for batch in batches:
            ours = model(batch)
            with failing(f"{name} cannot run the model"):
                logits = read(batch)
            if logits.shape != ours.shape:
                shapes = f"{tuple(logits.shape)} instead of {tuple(ours.shape)}"
                raise Failure(f"export: logits of {name} have the shape {shapes}")
            # also above the bound if it is not a number
            largest = max(largest, float((logits - ours).abs().max().nan_to_num(torch.inf)))
            bound = max(bound, TOLERANCE * float(ours.abs().max()))
    if not largest <= bound:
        raise Failure(
            f"export: logits of {name} differ by {largest:.2g} from those of the run, and at "
            f"most {bound:.2g} is rounding; nothing was written"
        )
    return largest


def check_tokenizer(
    folder: Path, tokenizer: Tokenizer, texts: Iterable[str], advance: Callable[[float], object]
) -> int:
    """Check that transformers encodes texts as a tokenizer, and decodes them. Return the tokens.

    `advance`: called with the number of tokens. Raises Failure at a difference.
    """
    transformers = import_transformers()
    with failing("transformers cannot load the tokenizer"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    n_tokens = 0
    for part in texts:
        ours = tokenizer.encode(part)
        with failing("transformers cannot encode the validation text"):
            ids = theirs(part, add_special_tokens=False, verbose=False)["input_ids"]
            decoded = theirs.decode(ids)
        if ids != ours:
            pairs = zip(ids, ours, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(ours)))
            raise Failure(
                f"export: token {n_tokens + at} of the validation text is {ids[at : at + 1]} in "
                f"transformers and {ours[at : at + 1]} in the run; nothing was written"
            )
        if decoded != part:
            raise Failure(
                "export: transformers decodes the validation text to another text; "
                "nothing was written"
            )
        n_tokens += len(ids)
        advance(len(ids))
    return n_tokens


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Raise Failure with `what` failed for an error of a library in the block."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # libraries wrap the reason in general advice
            cause = cause.__cause__
        why = f"{type(cause).__name__}: {first_line(cause)}"
        raise Failure(f"export: {what} ({why}); nothing was written") from error
