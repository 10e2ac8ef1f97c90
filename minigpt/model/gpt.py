"""The GPT: token embedding, blocks, head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import UserError, did_you_mean, require
from minigpt.model.attention import BACKENDS, BackendConfig, choose_backend
from minigpt.model.block import Block
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.norm import KINDS, NormConfig
from minigpt.model.positional import POSITIONAL, PositionalConfig
from minigpt.model.scores import Scores

EMBEDDINGS = ("tied", "untied")
RESIDUAL_INITS = ("scaled", "zero")


@dataclass
class EmbeddingConfig:
    """`name`: tied (the head is the token table, Press & Wolf 2017) or untied."""

    name: str

    def __post_init__(self) -> None:
        _one_of("model.embedding.name", self.name, EMBEDDINGS)


@dataclass
class ModelConfig:
    """A GPT's design. `vocab_multiple` pads the vocabulary; `residual_init` sets how the last
    map of each residual branch starts: normal over sqrt(2 n_layer) (GPT-2), or zero."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    dropout: float
    bias: bool
    qk_norm: bool
    residual_init: str
    vocab_multiple: int
    positional: PositionalConfig
    norm: NormConfig
    embedding: EmbeddingConfig
    ffn: FeedForwardConfig
    backend: BackendConfig

    def __post_init__(self) -> None:
        require(self.n_layer >= 0, "model.n_layer", self.n_layer, "must be 0 or more")
        for key in ("n_head", "n_embd", "block_size", "vocab_multiple"):
            require(
                getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "must be 1 or more"
            )
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")
        _one_of("model.residual_init", self.residual_init, RESIDUAL_INITS)
        if self.n_embd % self.n_head:
            heads = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            near = sorted(sorted(heads, key=lambda h: abs(h - self.n_head))[:3])
            require(
                False,
                "model.n_head",
                self.n_head,
                f"must divide model.n_embd={self.n_embd}; use {', '.join(map(str, near))} heads, "
                f"or another width",
            )


class GPT(nn.Module):
    """A decoder-only Transformer. Design choices come from `config`, the vocabulary from the data.

    The vocabulary is padded up to `config.vocab_multiple` inside; the padding never leaves the
    model: logits have exactly `n_vocab` columns.
    """

    def __init__(self, config: ModelConfig, n_vocab: int) -> None:
        super().__init__()
        self.config, self.n_vocab = config, n_vocab
        padded = -(-n_vocab // config.vocab_multiple) * config.vocab_multiple
        self.token_embedding = nn.Embedding(padded, config.n_embd)
        self.positional = POSITIONAL.build(config.positional, config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = (  # post-norm blocks end in a norm already
            KINDS[config.norm.kind](config.n_embd, config.bias)
            if config.norm.placement == "pre"
            else nn.Identity()
        )
        self.head = nn.Linear(config.n_embd, padded, bias=False)
        if config.embedding.name == "tied":
            self.head.weight = self.token_embedding.weight
        self._initialise()
        self.use_backend("cpu", bf16=False)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits (b, t, n_vocab) of the token after each of `tokens` (b, t).

        `positions` (b or 1, t) are absolute ids, 0 to t - 1 if None. Raises UserError past the
        scheme's `max_length`.
        """
        length = tokens.shape[1]
        if positions is None:
            last = length - 1
            plain, positions = True, torch.arange(length, device=tokens.device)[None]
        else:
            plain, last = False, int(positions.max())
        limit = self.positional.max_length
        if limit is not None and last >= limit:
            raise UserError(
                f"model.positional.name={self.config.positional.name}: has {limit} positions, "
                f"and position {last} was asked for; shorten the text or raise model.block_size"
            )
        scores = Scores(self.positional, self.config.n_head, positions, positions, plain)
        x = self.positional.embed(self.token_embedding(tokens), positions)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, scores, self.backend)
        return self.head(self.final_norm(x))[..., : self.n_vocab]

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of `targets` (b, t), the tokens that follow `tokens` (b, t)."""
        logits = self(tokens)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)

    def use_backend(self, device: str, bf16: bool) -> str:
        """Choose the attention backend for a device type and precision; returns 'name (reason)'."""
        self.backend_name, reason = choose_backend(self.config.backend, device, bf16)
        self.backend = BACKENDS[self.backend_name]
        return f"{self.backend_name} ({reason})"

    def parameter_counts(self) -> dict[str, int]:
        """Parameters: `total`, `non_embedding` (without vocabulary and positions), `positional`."""
        total = sum(p.numel() for p in self.parameters())
        positional = sum(p.numel() for p in self.positional.parameters())
        vocabulary = {self.token_embedding.weight, self.head.weight}  # one tensor when tied
        non_embedding = total - positional - sum(p.numel() for p in vocabulary)
        return {"total": total, "non_embedding": non_embedding, "positional": positional}

    def flops_per_token(self) -> int:
        """Training FLOPs a token: 6 a matrix weight, 12 n_layer n_embd block_size for attention.

        Forward and backward, causal masking not discounted (Chowdhery et al. 2022, appendix B).
        """
        matrices = self.parameter_counts()["non_embedding"] + self.head.weight.numel()
        attention = 12 * self.config.n_layer * self.config.n_embd * self.config.block_size
        return 6 * matrices + attention

    def _initialise(self) -> None:
        """GPT-2's: normal of 0.02 everywhere, zero biases, residual branches by `residual_init`."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        zero = self.config.residual_init == "zero"
        std = 0.0 if zero else 0.02 / math.sqrt(2 * max(1, self.config.n_layer))
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("out.weight"):
                nn.init.normal_(parameter, std=std)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    why = f"not one of {', '.join(known)}.{did_you_mean(value, known)}"
    require(value in known, key, value, why)
