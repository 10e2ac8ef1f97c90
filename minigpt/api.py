"""The Python API for notebooks: `load_run` and `runs`. See docs/api.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.data.tokens import encode_documents
from minigpt.errors import require, require_one_of
from minigpt.evaluate.loss import Evaluation, evaluate
from minigpt.inference.generate import for_decoding
from minigpt.run.load import TrainedRun


@dataclass(frozen=True)
class LoadedRun(TrainedRun):
    """A trained run: `model`, `tokenizer`, `config`, and methods that use them."""

    @torch.no_grad()
    def logits(self, text: str) -> Tensor:
        """Return the next-token logits (t, n_vocab) after each of the t tokens of a text.

        On the CPU, in fp32. Raises UserError if the text is empty, has characters that the
        tokenizer lacks, or has more tokens than the positional scheme has positions.
        """
        require(text != "", "text", repr(text), "must not be empty")
        tokens, document_ids = encode_documents(text, self.config.data.separator, self.tokenizer)
        device = self.runtime.device
        ids = None if document_ids is None else document_ids[None].long().to(device)
        with self.model.evaluating(), for_decoding(self.runtime).autocast():
            return self.model(tokens[None].long().to(device), documents=ids)[0].float().cpu()

    def evaluate(self, split: str = "val", length: int | None = None) -> Evaluation:
        """Return the loss of one full pass over a split, "train" or "val".

        In windows of `length` tokens, by default `model.block_size`. Raises UserError if the text
        is missing or has changed, or for more tokens than the positional scheme has positions.
        """
        require_one_of("split", split, ("train", "val"))
        return evaluate(self.model, getattr(self.tokens(), split), self.runtime, length)


def load_run(
    name: str = "latest",
    checkpoint: str | None = None,
    device: str = "auto",
    changes: Sequence[str] = (),
) -> LoadedRun:
    """Load a trained run: a run directory, or `latest` for the newest one below runs/.

    `checkpoint`: "best", "last", or None for the best if there is one, else the last.
    `changes`: KEY=VALUE of `model.positional.*` or `model.backend.name`, such as
    "model.positional.scaling=linear". Raises UserError if it cannot be loaded.
    """
    return LoadedRun.load(name, checkpoint, device, changes)
