"""The options of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from minigpt.errors import require, require_at_least, require_one_of
from minigpt.model.attention import AttentionConfig
from minigpt.model.backends import BackendConfig
from minigpt.model.ffn import FeedForwardConfig
from minigpt.model.norm import PLACEMENTS, NormConfig, no_residual, post_norm
from minigpt.model.positional import PositionalConfig
from minigpt.model.shape import INIT_STD, ModelShape

EMBEDDINGS = ("tied", "untied")
RESIDUAL_INITS = ("scaled", "zero", "normal")
ARCHITECTURES = ("decoder", "prefix_decoder", "encoder", "encoder_decoder")
BLOCKS = ("sequential", "parallel", "parallel_shared")
BIASES = (False, True, "qkv")
QK_NORMS = (False, True, "gain", "all_channels")
VALUE_RESIDUALS = (False, "first_layer", "x0")


@dataclass
class EmbeddingConfig:
    """`name`: tied (the head is the token table, Press & Wolf 2017) or untied.

    `scale`: whether the input of the first block is multiplied by sqrt(n_embd) (Vaswani et al.
    2017, section 3.4; Gemma).
    """

    name: str
    scale: bool = False

    def __post_init__(self) -> None:
        require_one_of("model.embedding.name", self.name, EMBEDDINGS)


@dataclass
class ModelConfig:
    """The design of a GPT. Each value is checked here, combinations in `compatibility`.

    `architecture` (in ARCHITECTURES): which keys a query can see, as the objective needs it:
    earlier ones (decoder), also those of a prefix (prefix_decoder), or all (encoder); of
    encoder_decoder, all in the encoder and earlier ones in the decoder, which attends to the output
    of the encoder. `n_encoder_layer`: blocks of the encoder, None for n_layer. `shared_embedding`:
    whether encoder and decoder share their token table. `n_special_tokens`: tokens that the model
    has beside those of the tokenizer. `source_length`, `target_length`: tokens of a window that the
    encoder reads, and that the decoder predicts. All three are as the objective needs them.
    `n_kv_head`: number of key-value heads, None for n_head. `head_size`: channels per head, None
    for n_embd / n_head. `block` (in BLOCKS): see `Block`. `bias` (in BIASES): in all linear layers
    but the head, in none, or only in the projections to q, k and v; LayerNorms have one with true,
    unless `norm.bias` says otherwise.
    `vocab_multiple`: the vocabulary is padded up to a multiple of this.
    `residual_init`: initial scale of the last linear layer of each residual branch, or of the gain
    of its output norm: 1 / sqrt(2 n_layer) (scaled, GPT-2), zero, or that of other layers (normal).
    No effect with norm=no_residual, which has no such branches.
    `logit_softcap`: see `AttentionBias`. `final_softcap`: bound of the output logits, c tanh(x / c)
    (Gemma 2, 2024). `qk_norm` (in QK_NORMS), `score_scale`, `value_residual` (in VALUE_RESIDUALS;
    true is first_layer), `head_gates`: see `SelfAttention`.
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
    bias: bool | str
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
    head_size: int | None = None
    block: str = "sequential"
    score_scale: float | None = None
    final_softcap: float | None = None
    architecture: str = "decoder"
    n_encoder_layer: int | None = None
    shared_embedding: bool = True
    n_special_tokens: int = 0
    source_length: int | None = None
    target_length: int | None = None

    def __post_init__(self) -> None:
        require_at_least(0, "model", self, "n_layer")
        require_at_least(1, "model", self, "n_head", "n_embd", "block_size", "vocab_multiple")
        sizes = ("n_kv_head", "head_size", "n_encoder_layer")
        require_at_least(1, "model", self, *sizes, or_null=True)
        require_one_of("model.architecture", self.architecture, ARCHITECTURES)
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be in [0, 1)")
        require_one_of("model.residual_init", self.residual_init, RESIDUAL_INITS)
        require_one_of("model.block", self.block, BLOCKS)
        why = "must be true, false or qkv"
        require(self.bias in BIASES, "model.bias", self.bias, why)
        why = "must be true, false, gain or all_channels"
        require(self.qk_norm in QK_NORMS, "model.qk_norm", self.qk_norm, why)
        if self.value_residual is True:  # its only value in earlier versions
            self.value_residual = "first_layer"
        value, why = self.value_residual, "must be false, first_layer or x0"
        require(value in VALUE_RESIDUALS, "model.value_residual", value, why)
        for key, default in (
            ("logit_softcap", "no soft-cap"),
            ("final_softcap", "no soft-cap"),
            ("score_scale", "1 / sqrt(head size)"),
        ):
            value = getattr(self, key)
            why = f"must be above 0, or null for {default}"
            require(value is None or value > 0, f"model.{key}", value, why)

    @property
    def residual_scale(self) -> float:
        """Initial scale of a residual branch, see `residual_init`; 1 where there are none."""
        if PLACEMENTS[self.norm.placement].residual is no_residual:
            return 1.0
        scaled = 1 / math.sqrt(2 * max(1, self.n_layer))
        return {"zero": 0.0, "scaled": scaled, "normal": 1.0}[self.residual_init]

    @property
    def encoder(self) -> ModelConfig | None:
        """The design of the encoder that the decoder attends to, if there is one."""
        if self.architecture != "encoder_decoder":
            return None
        n_layer = self.n_layer if self.n_encoder_layer is None else self.n_encoder_layer
        return replace(self, architecture="encoder", n_layer=n_layer, n_encoder_layer=None)

    @property
    def shape(self) -> ModelShape:
        """Sizes and switches that the parts of the model share."""
        scale = math.sqrt(self.n_embd) if self.embedding.scale else 1.0
        return ModelShape(
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_kv_head=self.n_head if self.n_kv_head is None else self.n_kv_head,
            n_embd=self.n_embd,
            head_size=self.n_embd // self.n_head if self.head_size is None else self.head_size,
            block_size=self.block_size,
            dropout=self.dropout,
            bias=self.bias is True,
            qkv_bias=self.bias is not False,
            block=self.block,
            qk_norm=self.qk_norm,
            score_scale=self.score_scale,
            value_residual=self.value_residual,
            head_gates=self.head_gates,
            embedding_rms=INIT_STD * scale,
            input_rms=self._input_rms(INIT_STD * scale),
            two_sided=self.architecture in ("prefix_decoder", "encoder"),
            reads_source=self.architecture == "encoder_decoder",
        )

    def _input_rms(self, embedding_rms: float) -> list[float]:
        """Return the initial RMS of the input of each layer's q, k and v projections."""
        placement = PLACEMENTS[self.norm.placement]
        first = 1.0 if self.norm.has_embedding_norm else embedding_rms
        if placement.residual is no_residual:  # of the first layer: the others have smaller inputs
            return [first] * self.n_layer
        if not placement.on_input:  # the residual stream: each output norm adds residual_scale
            added = 2 * self.residual_scale**2
            return [math.sqrt(first**2 + layer * added) for layer in range(self.n_layer)]
        if placement.residual is not post_norm:
            first = 1.0
        return [first if layer == 0 else 1.0 for layer in range(self.n_layer)]
