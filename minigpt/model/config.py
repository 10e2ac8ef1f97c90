"""The options of a model."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.errors import require, require_at_least, require_one_of
from minigpt.model.attention import AttentionConfig
from minigpt.model.backends import BackendConfig
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.norm import PLACEMENTS, NormConfig, post_norm
from minigpt.model.positional import PositionalConfig
from minigpt.model.shape import INIT_STD, ModelShape

EMBEDDINGS = ("tied", "untied")
RESIDUAL_INITS = ("scaled", "zero", "normal")
QK_NORMS = (False, True, "gain")
VALUE_RESIDUALS = (False, "first_layer", "x0")


@dataclass
class EmbeddingConfig:
    """`name`: tied (the head is the token table, Press & Wolf 2017) or untied."""

    name: str

    def __post_init__(self) -> None:
        require_one_of("model.embedding.name", self.name, EMBEDDINGS)


@dataclass
class ModelConfig:
    """The design of a GPT. Each value is checked here, combinations in `compatibility`.

    `n_kv_head`: number of key-value heads, None for n_head.
    `vocab_multiple`: the vocabulary is padded up to a multiple of this.
    `residual_init`: initial scale of the last linear layer of each residual branch, or of the gain
    of its output norm: 1 / sqrt(2 n_layer) (scaled, GPT-2), zero, or that of other layers (normal).
    `logit_softcap`: see `AttentionBias`. `qk_norm` (in QK_NORMS), `value_residual` (in
    VALUE_RESIDUALS; true is first_layer), `head_gates`: see `SelfAttention`.
    `unet_skips`: each layer of the second half adds the output of its mirror image in the first
    half (the innermost pair first), times a learned weight that starts at 1 (Jordan et al. 2024,
    modded-nanogpt). n_layer / 2 parameters.
    """

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    dropout: float
    bias: bool
    qk_norm: bool | str
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
    value_residual: bool | str = False
    unet_skips: bool = False
    head_gates: bool = False

    def __post_init__(self) -> None:
        require_at_least(0, "model", self, "n_layer")
        require_at_least(1, "model", self, "n_head", "n_embd", "block_size", "vocab_multiple")
        require_at_least(1, "model", self, "n_kv_head", or_null=True)
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")
        require_one_of("model.residual_init", self.residual_init, RESIDUAL_INITS)
        why = "must be true, false or gain"
        require(self.qk_norm in QK_NORMS, "model.qk_norm", self.qk_norm, why)
        if self.value_residual is True:  # its only value in earlier versions
            self.value_residual = "first_layer"
        value, why = self.value_residual, "must be false, first_layer or x0"
        require(value in VALUE_RESIDUALS, "model.value_residual", value, why)
        cap, why = self.logit_softcap, "must be above 0, or null for no soft-cap"
        require(cap is None or cap > 0, "model.logit_softcap", cap, why)

    @property
    def shape(self) -> ModelShape:
        """Sizes and switches that the parts of the model share."""
        n_kv_head = self.n_head if self.n_kv_head is None else self.n_kv_head
        norm_first = PLACEMENTS[self.norm.placement].residual is not post_norm
        return ModelShape(
            *(self.n_layer, self.n_head, n_kv_head, self.n_embd, self.block_size),
            *(self.dropout, self.bias, self.qk_norm, self.value_residual, self.head_gates),
            first_input_rms=1.0 if norm_first else INIT_STD,
        )
