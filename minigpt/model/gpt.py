"""The GPT: token embedding, blocks, head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt.errors import UserError
from minigpt.model.attention import ATTENTION, Attention, AttentionConfig
from minigpt.model.backends import BACKENDS, Backend, flex
from minigpt.model.block import Block
from minigpt.model.compatibility import Use, choose_backend, problems
from minigpt.model.config import ModelConfig
from minigpt.model.context import Auxiliary, ForwardContext
from minigpt.model.ffn import FeedForward
from minigpt.model.kv_cache import KVCache
from minigpt.model.linear import Linear, ZeroLinear, linear_flops, matrices
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.model.shape import INIT_STD

MAX_LOGITS = 2**22  # logits computed at once: 16 MiB in fp32


class GPT(nn.Module):
    """A decoder-only Transformer of a design `config` for a vocabulary of `n_vocab` tokens.

    The vocabulary is padded up to a multiple of `config.vocab_multiple`; logits have exactly
    `n_vocab` columns. The design must be free of `problems`.
    """

    def __init__(self, config: ModelConfig, n_vocab: int) -> None:
        super().__init__()
        assert not problems(config), problems(config)[0]
        self.config, self.n_vocab = config, n_vocab
        n_padded = -(-n_vocab // config.vocab_multiple) * config.vocab_multiple
        shape = config.shape
        self.token_embedding = nn.Embedding(n_padded, config.n_embd)
        with torch.random.fork_rng(devices=[]):  # other parts start the same in all designs
            self.positional = POSITIONAL.build(config.positional, shape)
            self.attention = ATTENTION.build(config.attention, shape)
        full = Attention(AttentionConfig("full"), shape)
        by_layer = config.attention.by_layer(config.n_layer)
        # A list, so that no module is registered twice.
        self.attention_by_layer = [self.attention if own else full for own in by_layer]
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(shape, config.norm, config.ffn, layer) for layer in range(config.n_layer)
        )
        if config.unet_skips:
            self.skip_weights = nn.Parameter(torch.ones(config.n_layer // 2))
        self.embedding_norm = config.norm.build(shape, config.norm.has_embedding_norm)
        self.final_norm = config.norm.build(shape, PLACEMENTS[config.norm.placement].final)
        self.head = Linear(config.n_embd, n_padded, bias=False)
        if config.embedding.name == "tied":
            self.head.weight = self.token_embedding.weight
        self._initialise()
        name = config.backend.name
        self.backend_name = "eager" if name == "auto" else name  # until `use_backend` is called
        self.backend = BACKENDS[self.backend_name]
        self.backend_without_gradients: Backend | None = None  # None: the same backend
        self.max_logits = MAX_LOGITS
        self.total: Callable[[Tensor], Tensor] = lambda x: x  # see `Auxiliary`

    def _initialise(self) -> None:
        """Initialise as GPT-2: normal with std 0.02, zero biases, residual branches scaled.

        `residual_init` is the scale of a branch: of its last linear layer, or of its output norm if
        it has one. `normal` scales neither.
        """
        for name, module in self.named_modules():
            if name.startswith("positional"):
                continue  # a positional scheme initialises its own parameters
            if isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module, ZeroLinear):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        scale, offset = self.config.residual_scale, 1.0 if self.config.norm.unit_offset else 0.0
        has_output_norm = PLACEMENTS[self.config.norm.placement].on_output
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("output_norm.weight"):
                nn.init.constant_(parameter, scale - offset)
            elif name.endswith("out.weight") and not has_output_norm:
                nn.init.normal_(parameter, std=INIT_STD * scale)

    # ---- forward ----

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Return logits (b, t, n_vocab) of the next token after each of `tokens`. See `hidden`."""
        return self.logits(self.hidden(tokens, positions, cache, document_ids, auxiliary))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., n_vocab) of final hidden states (..., d)."""
        logits, cap = self.head(hidden)[..., : self.n_vocab], self.config.final_softcap
        if cap is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cap * torch.tanh(logits / cap)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> Tensor:
        """Return the final hidden states (b, t, d) of `tokens` (b, t), the input of the head.

        `positions` (b or 1, t): absolute positions, by default 0 to t - 1. `cache`: the KV cache;
        tokens attend to its content and are appended to it. `document_ids` (b, t), int64,
        non-decreasing along t: tokens attend only to their own document, and default positions
        restart at 0 in each. `auxiliary`: receives losses and metrics of layers. Raises UserError
        for a position beyond the positional scheme's `max_length`.
        """
        if document_ids is not None:
            assert cache is None, "a cache holds one document per row"
            assert self.attention.supports_documents, "`compatibility` should have rejected this"
        no_cache = cache is None or cache.empty
        in_order = positions is None and document_ids is None and no_cache
        n_tokens = tokens.shape[1]
        if positions is not None:
            last = int(positions.max()) if cache is None else cache.last_of(positions)
        else:
            last = n_tokens - 1  # upper bound with documents; the exact one syncs the device
            positions = torch.arange(n_tokens, device=tokens.device)[None]
            if document_ids is not None:
                positions = positions_in_documents(document_ids)
        limit = self.positional.max_length
        if limit is not None and last >= limit:
            raise UserError(
                f"model.positional.name={self.config.positional.name}: has {limit} positions, "
                f"and position {last} was asked for; shorten the text or raise model.block_size"
            )
        if cache is not None:
            cache.begin(positions, last)
        x = self.token_embedding(tokens)
        x, positions = self.attention.extend_sequence(x, positions, in_order)
        if self.config.embedding.scale:
            x = x * math.sqrt(self.config.n_embd)
        ctx = ForwardContext(
            *(self.positional, self.backend, self.config.n_head, self.config.logit_softcap),
            *(positions, n_tokens, last, in_order, cache),
            query_blocks=self.backend is not flex,  # which skips masked blocks itself
            document_ids=document_ids,
            auxiliary=auxiliary,
        )
        x = self.dropout(self.embedding_norm(self.positional.embed(x, positions)))
        if self.config.value_residual == "x0":
            ctx.x0 = F.rms_norm(x, x.shape[-1:])
        return self.final_norm(self._apply_blocks(x, ctx)[:, :n_tokens])

    def _apply_blocks(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Apply all blocks, with U-net skip connections if configured."""
        n_skips = self.config.n_layer // 2 if self.config.unet_skips else 0
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if len(self.blocks) - layer <= n_skips:
                x = x + self.skip_weights[n_skips - len(skips)] * skips.pop()
            x = block(x, self.attention_by_layer[layer], ctx)
            if layer < n_skips:
                skips.append(x)
        return x

    # ---- loss ----

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the cross-entropy in nats of `targets` (b, t), the tokens that follow `tokens`."""
        x = self.hidden(tokens, document_ids=document_ids)
        return self._cross_entropy(x, targets, reduction)

    def training_loss(
        self, tokens: Tensor, targets: Tensor, document_ids: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss, and metrics to log by name.

        The loss is the cross-entropy (logged as train_loss) plus the auxiliary losses, each
        averaged over layers and multiplied by its coefficient.
        """
        auxiliary = Auxiliary(total=self.total)
        x = self.hidden(tokens, document_ids=document_ids, auxiliary=auxiliary)
        loss = self._cross_entropy(x, targets, "mean")
        logged = {"train_loss": loss.detach()}
        for name, by_layer in auxiliary.losses.items():
            value = torch.stack(by_layer).mean()
            loss = loss + auxiliary.coefficients[name] * value
            logged[name] = value.detach()
        return loss, logged | auxiliary.metrics

    def _cross_entropy(self, x: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the loss of final hidden states, in checkpointed chunks if logits are many."""
        x, targets = x.flatten(0, 1), targets.flatten()
        size = max(1, self.max_logits // self.n_vocab)
        if len(x) <= size:
            return self._losses(x, targets, reduction)
        losses = [  # the RNG state is not needed, and reading it syncs a GPU
            checkpoint(self._losses, *chunk, "none", use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(x.split(size), targets.split(size), strict=True)
        ]
        by_token = torch.cat(losses)
        return by_token.mean() if reduction == "mean" else by_token

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
        self.backend = self.backend_without_gradients or backend
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self.train()
            self.backend = backend

    def use_backend(self, device: str, bf16: bool, use: Use = "inference") -> str:
        """Choose the attention backend for a device type, precision and use.

        With backend=auto, `evaluating` uses the fastest one for inference. Returns
        'name (reason)'. Raises UserError if the configured backend does not support the design.
        """
        self.backend_name, reason = choose_backend(self.config, device, bf16, use)
        self.backend = BACKENDS[self.backend_name]
        if self.config.backend.name == "auto":
            name, _ = choose_backend(self.config, device, bf16, "inference")
            self.backend_without_gradients = BACKENDS[name]
        return f"{self.backend_name} ({reason})"

    # ---- parameters ----

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of parameters: `total`, `active` (used per token: without the
        inactive experts), `non_embedding` (without vocabulary and positions), `positional`, and
        `trained` if some are frozen."""
        total = sum(p.numel() for p in self.parameters())
        positional = sum(p.numel() for p in self.positional.parameters())
        vocabulary = {self.token_embedding.weight, self.head.weight}  # counted once if tied
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
        tables = self.positional.parameters() if self.positional.weight_decay else ()
        decayed = {*matrices(self), self.token_embedding.weight, *(p for p in tables if p.ndim > 1)}
        return [p for p in self.parameters() if p in decayed]

    def flops_per_token(self, batch_size: int) -> int:
        """Return the FLOPs per token of the products in a training step of `batch_size` windows.

        6 per active weight of the linear layers, and what attention and positional scheme say of
        themselves: 12 head_size per key, head and layer in full attention, without a discount for
        the causal mask (Chowdhery et al. 2022, appendix B). Counts what the formulas need: not
        elementwise operations, masked keys that a backend computes, or products that it computes
        twice.
        """
        length = self.config.block_size
        blocks = [module for module in self.blocks if isinstance(module, Block)]
        linear = sum(linear_flops(b.self_attention) + b.ffn.flops_per_token() for b in blocks)
        attention = sum(each.flops_per_query(length) for each in self.attention_by_layer)
        in_blocks = linear + attention + self._bias_flops(batch_size)
        return round(in_blocks * self.attention.rows_per_token + linear_flops(self.head))

    def _bias_flops(self, batch_size: int) -> float:
        """Return the training FLOPs per query of the positional scheme's bias, in all layers."""
        depends_on = self.positional.bias_depends_on
        attentions = self.attention_by_layer
        if depends_on == "positions":  # one bias for all layers that share an attention
            attentions = list(dict.fromkeys(attentions))
        keys = [each.keys_per_query(self.config.block_size) for each in attentions]
        flops = sum(map(self.positional.flops_per_query, keys))
        return flops if depends_on == "content" else flops / batch_size


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Return positions (b, t) that restart at 0 wherever the document id (b, t) changes."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
