"""The GPT: a stack of blocks, an encoder if its design has one, head, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt.model.backends import BACKENDS, Backend
from minigpt.model.block import Block
from minigpt.model.compatibility import Use, choose_backend, problems
from minigpt.model.config import ModelConfig
from minigpt.model.context import Auxiliary
from minigpt.model.ffn import FeedForward
from minigpt.model.kv_cache import KVCache
from minigpt.model.linear import Linear, linear_flops, matrices
from minigpt.model.memory import Memory
from minigpt.model.stack import Stack

MAX_LOGITS = 2**22  # logits computed at once: 16 MiB in fp32


class GPT(Stack):
    """A Transformer of a design `config` for a tokenizer with `n_ordinary` tokens.

    `n_vocab`: these, and the special tokens of the objective, whose ids follow. It is padded up to
    a multiple of `config.vocab_multiple`; logits have exactly `n_vocab` columns. The design must be
    free of `problems`. With an encoder, another stack reads a source, and the blocks of this one
    attend to its output (Vaswani et al. 2017).
    """

    def __init__(self, config: ModelConfig, n_ordinary: int) -> None:
        assert not problems(config), problems(config)[0]
        n_vocab = n_ordinary + config.n_special_tokens
        n_padded = -(-n_vocab // config.vocab_multiple) * config.vocab_multiple
        super().__init__(config, n_padded)
        self.n_ordinary, self.n_vocab = n_ordinary, n_vocab
        self.head = Linear(config.n_embd, n_padded, bias=False)
        if config.embedding.name == "tied":
            self.head.weight = self.token_embedding.weight
        self.initialise()
        self.encoder: Stack | None = None
        if config.encoder is not None:
            self.encoder = Stack(config.encoder, n_padded)
            self.encoder.initialise()
            if config.shared_embedding:
                self.encoder.token_embedding = self.token_embedding
        name = config.backend.name
        self.backend_name = "eager" if name == "auto" else name  # until `use_backend` is called
        self.set_backend(BACKENDS[self.backend_name])
        self.max_logits = MAX_LOGITS
        self.total: Callable[[Tensor], Tensor] = lambda x: x  # see `Auxiliary`

    @property
    def stacks(self) -> list[Stack]:
        """This stack, and the encoder if there is one."""
        return [self] if self.encoder is None else [self, self.encoder]

    # ---- forward ----

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
        lengths: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return logits (b, t, n_vocab) at each of `tokens`: of a decoder, of the token after it,
        of an encoder, of the token itself. See `hidden`."""
        parts = (positions, cache, document_ids, auxiliary, lengths, memory)
        return self.logits(self.hidden(tokens, *parts))

    def encode(
        self,
        source: Tensor,
        lengths: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Memory:
        """Return the output of the encoder for tokens (b, s), padded after `lengths` (b,)."""
        assert self.encoder is not None
        return Memory(self.encoder.hidden(source, auxiliary=auxiliary, lengths=lengths), lengths)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., n_vocab) of final hidden states (..., d)."""
        logits, cap = self.head(hidden)[..., : self.n_vocab], self.config.final_softcap
        if cap is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cap * torch.tanh(logits / cap)

    # ---- loss ----

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
        *,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the cross-entropy in nats of `targets` (b, t): see `Batch`.

        `reduction`: mean, weighted if there are weights, or none: of each target, not weighted.
        """
        memory = None if source is None else self.encode(source)
        x = self.hidden(inputs, document_ids=document_ids, lengths=lengths, memory=memory)
        return self._cross_entropy(x, targets, weights, reduction)

    def training_loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        weights: Tensor | None = None,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of the tensors of a `Batch`, and metrics to log by name.

        The loss is the cross-entropy (logged as train_loss) plus the auxiliary losses, each
        averaged over layers and multiplied by its coefficient.
        """
        auxiliary = Auxiliary(total=self.total)
        memory = None if source is None else self.encode(source, auxiliary=auxiliary)
        parts = {"document_ids": document_ids, "lengths": lengths, "memory": memory}
        x = self.hidden(inputs, auxiliary=auxiliary, **parts)
        loss = self._cross_entropy(x, targets, weights, "mean")
        logged = {"train_loss": loss.detach()}
        for name, by_layer in auxiliary.losses.items():
            value = torch.stack(by_layer).mean()
            loss = loss + auxiliary.coefficients[name] * value
            logged[name] = value.detach()
        return loss, logged | auxiliary.metrics

    def _cross_entropy(
        self, x: Tensor, targets: Tensor, weights: Tensor | None, reduction: str
    ) -> Tensor:
        """Return the loss of final hidden states, in checkpointed chunks if logits are many."""
        x, targets = x.flatten(0, 1), targets.flatten()
        size = max(1, self.max_logits // self.n_vocab)
        if weights is None and len(x) <= size:
            return self._losses(x, targets, reduction)
        chunks = zip(x.split(size), targets.split(size), strict=True)
        of_chunk = self._losses if len(x) <= size else self._losses_again
        by_token = torch.cat([of_chunk(*chunk, "none") for chunk in chunks])
        if reduction == "none":
            return by_token
        return by_token.mean() if weights is None else (by_token * weights.flatten()).mean()

    def _losses_again(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return `_losses`, computed again in the backward pass."""
        # The RNG state is not needed, and reading it syncs a GPU.
        parts = (self._losses, x, targets, reduction)
        return checkpoint(*parts, use_reentrant=False, preserve_rng_state=False)

    def _losses(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        logits = self.logits(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction=reduction)

    # ---- backends and evaluation ----

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients; restore the mode afterwards."""
        was_training, backend = self.training, self.backend
        if was_training:  # visiting all modules takes 1/6 of the time per decoded token
            self.eval()
        self.set_backend(self.backend_without_gradients or backend)
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self.train()
            self.set_backend(backend)

    def use_backend(self, device: str, bf16: bool, use: Use = "inference") -> str:
        """Choose the attention backend for a device type, precision and use.

        With backend=auto, `evaluating` uses the fastest one for inference. Returns
        'name (reason)'. Raises UserError if the configured backend does not support the design.
        """
        self.backend_name, reason = choose_backend(self.config, device, bf16, use)
        self.set_backend(BACKENDS[self.backend_name])
        if self.config.backend.name == "auto":
            name, _ = choose_backend(self.config, device, bf16, "inference")
            self.backend_without_gradients = BACKENDS[name]
        return f"{self.backend_name} ({reason})"

    def set_backend(self, backend: Backend) -> None:
        """Compute attention by an implementation, also in the encoder."""
        for stack in self.stacks:
            stack.backend = backend

    # ---- parameters ----

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of parameters: `total`, `active` (used per token: without the
        inactive experts), `non_embedding` (without vocabulary and positions), `positional`, and
        `trained` if some are frozen."""
        total = sum(p.numel() for p in self.parameters())
        positional = sum(p.numel() for s in self.stacks for p in s.positional.parameters())
        vocabulary = {self.head.weight, *(s.token_embedding.weight for s in self.stacks)}
        layers = [module for module in self.modules() if isinstance(module, FeedForward)]
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {
            "total": total,
            "active": total - sum(layer.inactive_parameters() for layer in layers),
            "non_embedding": total - positional - sum(p.numel() for p in vocabulary),
            "positional": positional,
            **({"trained": trained} if 0 < trained < total else {}),
        }

    def decayed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for weight decay: matrices of products, and tables of vectors.

        Not what is multiplied or added elementwise (norms, biases, convolutions), nor attention
        score biases.
        """
        decayed = {*matrices(self)}
        for stack in self.stacks:
            tables = stack.positional.parameters() if stack.positional.weight_decay else ()
            decayed |= {stack.token_embedding.weight, *(p for p in tables if p.ndim > 1)}
        return [p for p in self.parameters() if p in decayed]

    def flops_per_token(self, batch_size: int) -> int:
        """Return the FLOPs per token of the products in a training step of `batch_size` windows.

        6 per active weight of the linear layers, and what attention and positional scheme say of
        themselves: 12 head_size per key, head and layer in full attention, without a discount for
        the causal mask (Chowdhery et al. 2022, appendix B). Counts what the formulas need: not
        elementwise operations, masked keys that a backend computes, or products that it computes
        twice.
        """
        length, config = self.config.block_size, self.config
        if self.encoder is None:
            return round(self.flops_of_blocks(batch_size, length) + linear_flops(self.head))
        read, written = config.source_length or length, config.target_length or length
        cross = [b.cross_attention for b in self.blocks if isinstance(b, Block)]
        per_target = self.flops_of_blocks(batch_size, written) + linear_flops(self.head)
        per_target += sum(c.flops_per_query(read) for c in cross if c is not None)
        per_source = self.encoder.flops_of_blocks(batch_size, read)
        per_source += sum(linear_flops(c.kv) for c in cross if c is not None)
        return round((per_target * written + per_source * read) / length)
