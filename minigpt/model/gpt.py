"""The GPT: token embedding, blocks, head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt.errors import UserError, require, require_one_of
from minigpt.model.attention import ATTENTION, Attention, AttentionConfig, Pass
from minigpt.model.attention.full import FullAttention
from minigpt.model.backends import BACKENDS, Backend, BackendConfig, Use, choose_backend, flex
from minigpt.model.block import Block
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.ffn.moe import MixtureConfig, MixtureOfExperts, Routing
from minigpt.model.kv_cache import KVCache
from minigpt.model.norm import PLACEMENTS, NormConfig
from minigpt.model.positional import POSITIONAL, PositionalConfig

EMBEDDINGS = ("tied", "untied")
RESIDUAL_INITS = ("scaled", "zero")
MOST_LOGITS = 2**22  # held at once: 16 MiB in fp32
NO_BLOCKS = "works inside blocks, and model.n_layer=0 has none"


@dataclass
class EmbeddingConfig:
    """`name`: tied (the head is the token table, Press & Wolf 2017) or untied."""

    name: str

    def __post_init__(self) -> None:
        require_one_of("model.embedding.name", self.name, EMBEDDINGS)


@dataclass
class ModelConfig:
    """A GPT's design. `vocab_multiple` pads the vocabulary; `residual_init` sets how the last
    map of each residual branch starts, or the norm of its result: over sqrt(2 n_layer) (GPT-2), or
    zero.
    `n_kv_head`: heads of keys and values, None for n_head. `logit_softcap`: see `Scores`.
    `value_residual`: see `SelfAttention`. `unet_skips`: each layer of the second half also gets,
    in a learned part that starts at 1, what its mirror image in the first half gave (the innermost
    pair first; Jordan et al. 2024, modded-nanogpt): n_layer / 2 parameters."""

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
    attention: AttentionConfig
    backend: BackendConfig
    n_kv_head: int | None = None
    logit_softcap: float | None = None
    value_residual: bool = False
    unet_skips: bool = False

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    def __post_init__(self) -> None:
        require(self.n_layer >= 0, "model.n_layer", self.n_layer, "must be 0 or more")
        why = f"a bigram has no layers, and model.n_layer={self.n_layer}; set model.n_layer=0"
        require(self.name != "bigram" or self.n_layer == 0, "model", self.name, why)
        for key in ("n_head", "n_embd", "block_size", "vocab_multiple"):
            require(
                getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "must be 1 or more"
            )
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")
        require_one_of("model.residual_init", self.residual_init, RESIDUAL_INITS)
        why = "must be above 0, or null for none"
        cap = self.logit_softcap
        require(cap is None or cap > 0, "model.logit_softcap", cap, why)
        for key in ("value_residual", "unet_skips"):
            why = (
                f"goes from layer to layer, and model.n_layer={self.n_layer}; use 2 layers or more"
            )
            require(self.n_layer >= 2 or not getattr(self, key), f"model.{key}", "true", why)
        # What is on by default is left alone: nobody need have asked for it.
        pair = type(self.ffn) is FeedForwardConfig
        require(self.n_layer > 0 or pair, "ffn", self.ffn.name, f"{NO_BLOCKS}; use relu2")
        for key in ("n_kv_head", "logit_softcap"):
            value = getattr(self, key)
            why = f"{NO_BLOCKS}; use null"
            require(self.n_layer > 0 or value is None, f"model.{key}", value, why)
        _require_divides("n_head", self.n_head, "n_embd", self.n_embd)
        if self.n_kv_head is not None:
            require(self.n_kv_head >= 1, "model.n_kv_head", self.n_kv_head, "must be 1 or more")
            _require_divides("n_kv_head", self.n_kv_head, "n_head", self.n_head)


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
        with torch.random.fork_rng(devices=[]):  # whatever they draw, the rest starts the same
            self.positional = POSITIONAL.build(config.positional, config)
            self.attention = ATTENTION.build(config.attention, config)
        why_not = self.attention.why_not(config, self.positional)
        if config.n_layer == 0 and config.attention.name != "full":
            why_not = f"{NO_BLOCKS}; use full"
        require(why_not is None, "attention", config.attention.name, why_not or "")
        # By layer; a list registers no submodules, of which one may occur twice.
        self.attentions: Sequence[Attention] = _by_layer(self.attention, config)
        why = (
            f"no layer of model.n_layer={config.n_layer} has it; name {config.attention.name} first"
        )
        has_it = config.n_layer == 0 or self.attention in self.attentions
        key = "model.attention.layers"
        require(has_it, key, getattr(config.attention, "layers", None), why)
        in_blocks = self.positional.score != "none" or any(
            self.positional.uses(hook) for hook in ("block_input", "rotate")
        )
        why = f"{NO_BLOCKS}; use nope, learned or sinusoidal"
        name = config.positional.name
        require(config.n_layer > 0 or not in_blocks, "model.positional.name", name, why)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        placement = PLACEMENTS[config.norm.placement]

        def norm_if(wanted: bool) -> nn.Module:
            return config.norm.make(config.n_embd, config.bias) if wanted else nn.Identity()

        if config.unet_skips:
            self.skip_parts = nn.Parameter(torch.ones(config.n_layer // 2))
        self.embedding_norm = norm_if(placement.embeddings)
        self.final_norm = norm_if(placement.last)
        self.head = nn.Linear(config.n_embd, padded, bias=False)
        if config.embedding.name == "tied":
            self.head.weight = self.token_embedding.weight
        self._initialise()
        name = config.backend.name
        self.backend_name = "eager" if name == "auto" else name  # until `use_backend` is asked
        self.backend = BACKENDS[self.backend_name]
        self.backend_without_gradients: Backend | None = None  # None: the same
        self.logits_at_once = MOST_LOGITS

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Logits (b, t, n_vocab) of the token after each of `tokens` (b, t). See `hidden`."""
        x = self.hidden(tokens, positions, cache, documents, routings)
        return self.head(x)[..., : self.n_vocab]

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """What the head reads (b, t, d) after each of `tokens` (b, t).

        `positions` (b or 1, t) are absolute ids, 0 to t - 1 if None. With a cache the tokens see
        those it holds, and are kept there. `documents` (b, t), int64, says where each row goes from
        one text to the next, by ids that do not decrease: tokens see their own document alone, and
        positions that are None begin at 0 in each. Each layer of routed experts adds to `routings`
        where it sent the tokens. Raises UserError past the scheme's `max_length`.
        """
        assert documents is None or cache is None, "a cache holds one document a row"
        assert documents is None or self.attention.documents, "a config with both is refused"
        length = tokens.shape[1]
        empty = cache is None or cache.empty
        in_order = positions is None and documents is None and empty
        if positions is None:
            last = length - 1  # with documents at most: asking would wait for the device
            positions = torch.arange(length, device=tokens.device)[None]
            positions = positions if documents is None else restarting_positions(documents)
        else:
            last = int(positions.max())
        limit = self.positional.max_length
        if limit is not None and last >= limit:
            raise UserError(
                f"model.positional.name={self.config.positional.name}: has {limit} positions, "
                f"and position {last} was asked for; shorten the text or raise model.block_size"
            )
        if cache is not None:
            cache.begin(positions, last)
        x, positions = self.attention.add_rows(self.token_embedding(tokens), positions, in_order)
        shared = Pass(
            scheme=self.positional,
            config=self.config,
            backend=self.backend,
            positions=positions,
            length=length,
            last=last,
            in_order=in_order,
            cache=cache,
            folds=self.backend is not flex,  # which skips what is not seen by itself
            documents=documents,
            routings=routings,
        )
        x = self.positional.embed(x, positions)
        x = self.dropout(self.embedding_norm(x))
        n_skips = self.config.n_layer // 2 if self.config.unet_skips else 0
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if len(self.blocks) - layer <= n_skips:
                x = x + self.skip_parts[n_skips - len(skips)] * skips.pop()
            x = block(x, self.attentions[layer], shared)
            if layer < n_skips:
                skips.append(x)
        return self.final_norm(x[:, :length])

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy in nats of `targets` (b, t), the tokens that follow `tokens` (b, t).

        `documents`: see `forward`.
        """
        return self._cross_entropy(self.hidden(tokens, documents=documents), targets, reduction)

    def training_loss(
        self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What training minimises, and what it logs by name: train_loss, the cross-entropy alone.

        Layers of routed experts add their balance losses to what is minimised, the mean over
        layers times a coefficient, and log it and the share of tokens (e,) that each expert got.
        """
        routings: list[Routing] = []
        x = self.hidden(tokens, documents=documents, routings=routings)
        loss = self._cross_entropy(x, targets, "mean")
        logged = {"train_loss": loss.detach()}
        if routings:
            assert isinstance(self.config.ffn, MixtureConfig)
            balance_loss = torch.stack([routing.balance_loss() for routing in routings]).mean()
            loss = loss + self.config.ffn.balance * balance_loss
            logged["balance_loss"] = balance_loss.detach()
            for layer, routing in enumerate(routings):
                logged[f"expert_usage/layer_{layer}/expert"] = routing.usage
        return loss, logged

    def _cross_entropy(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """The loss of what the head reads; of many logits in chunks, which are computed again."""
        x, targets = x.flatten(0, 1), targets.flatten()
        size = max(1, self.logits_at_once // self.n_vocab)
        if len(x) <= size:
            return self._losses(x, targets, reduction)
        losses = [  # no random state is kept: nothing here draws, and asking a GPU for it waits
            checkpoint(self._losses, *chunk, "none", use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(x.split(size), targets.split(size), strict=True)
        ]
        found = torch.cat(losses)
        return found.mean() if reduction == "mean" else found

    def _losses(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        logits = self.head(x)[:, : self.n_vocab].float()
        return F.cross_entropy(logits, targets, reduction=reduction)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without gradients; afterwards the mode is as it was."""
        was_training, backend = self.training, self.backend
        if was_training:  # walking over all modules would be a sixth of decoding a token
            self.eval()
        self.backend = self.backend_without_gradients or backend
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self.train()
            self.backend = backend

    def use_backend(self, device: str, bf16: bool, use: Use = "decode") -> str:
        """Choose the attention backend for a device type, precision and use.

        `evaluating` takes what suits passes without gradients, if the choice is ours. Returns 'name
        (reason)'. Raises UserError where the configured one is not able.
        """
        self.backend_name, reason = choose_backend(self.config, self.positional, device, bf16, use)
        self.backend = BACKENDS[self.backend_name]
        if self.config.backend.name == "auto":
            name, _ = choose_backend(self.config, self.positional, device, bf16, "decode")
            self.backend_without_gradients = BACKENDS[name]
        return f"{self.backend_name} ({reason})"

    def parameter_counts(self) -> dict[str, int]:
        """Parameters: `total`, `active` (those a token uses, without the other experts),
        `non_embedding` (without vocabulary and positions), `positional`."""
        total = sum(p.numel() for p in self.parameters())
        positional = sum(p.numel() for p in self.positional.parameters())
        vocabulary = {self.token_embedding.weight, self.head.weight}  # one tensor when tied
        non_embedding = total - positional - sum(p.numel() for p in vocabulary)
        mixtures = (module for module in self.modules() if isinstance(module, MixtureOfExperts))
        return {
            "total": total,
            "active": total - sum(mixture.idle_parameters() for mixture in mixtures),
            "non_embedding": non_embedding,
            "positional": positional,
        }

    def decayed(self) -> list[nn.Parameter]:
        """Parameters for weight decay: matrices and tables of vectors.

        Not vectors (norms, biases), nor the bare scores of a scheme.
        """
        bare = set() if self.positional.decays else set(self.positional.parameters())
        return [p for p in self.parameters() if p.ndim >= 2 and p not in bare]

    def flops_per_token(self) -> int:
        """Training FLOPs a token: 6 an active weight, 12 n_embd a key and layer for attention.

        Forward and backward, causal masking not discounted (Chowdhery et al. 2022, appendix B);
        the keys are those an attention shows; a backend may compute more and hide them.
        """
        counts = self.parameter_counts()
        idle = counts["total"] - counts["active"]
        weights = (counts["non_embedding"] - idle) * self.attention.rows + self.head.weight.numel()
        keys = sum(attention.keys(self.config.block_size) for attention in self.attentions)
        return round(6 * weights + 12 * self.config.n_embd * keys)

    def _initialise(self) -> None:
        """GPT-2's: normal of 0.02 everywhere, zero biases, residual branches by `residual_init`.

        What starts small is the last thing of a branch: its last map, or the norm of its result.
        """
        for name, module in self.named_modules():
            if name.startswith("positional"):
                continue  # a scheme initialises itself
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        zero = self.config.residual_init == "zero"
        start = 0.0 if zero else 1 / math.sqrt(2 * max(1, self.config.n_layer))
        ends_in_norm = PLACEMENTS[self.config.norm.placement].result
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("result_norm.weight"):
                nn.init.constant_(parameter, start)
            elif name.endswith("out.weight") and not ends_in_norm:
                nn.init.normal_(parameter, std=0.02 * start)


def _by_layer(attention: Attention, config: ModelConfig) -> list[Attention]:
    """The attention of each layer."""
    full = FullAttention(AttentionConfig("full"), config)
    names = getattr(config.attention, "layers", [config.attention.name])
    own = [names[layer % len(names)] == config.attention.name for layer in range(config.n_layer)]
    return [attention if wanted else full for wanted in own]


def restarting_positions(documents: Tensor) -> Tensor:
    """Positions (b, t) that begin at 0 wherever the id of a row's documents (b, t) changes."""
    place = torch.arange(documents.shape[1], device=documents.device)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def _require_divides(key: str, heads: int, whole_key: str, whole: int) -> None:
    """Raise UserError unless `heads` divides `whole`; names the nearest that do."""
    able = [n for n in range(1, whole + 1) if whole % n == 0]
    near = sorted(sorted(able, key=lambda n: abs(n - heads))[:3])
    require(
        whole % heads == 0,
        f"model.{key}",
        heads,
        f"must divide model.{whole_key}={whole}; use {', '.join(map(str, near))} heads, "
        f"or another {whole_key}",
    )
