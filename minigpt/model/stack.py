"""A stack of blocks with its token embedding, positions and attention: tokens to hidden states."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import UserError
from minigpt.model.attention import ATTENTION, Attention, AttentionConfig
from minigpt.model.backends import BACKENDS, Backend, flex
from minigpt.model.block import Block
from minigpt.model.config import ModelConfig
from minigpt.model.context import Auxiliary, ForwardContext
from minigpt.model.kv_cache import KVCache
from minigpt.model.linear import ZeroLinear, linear_flops
from minigpt.model.memory import Memory
from minigpt.model.norm import PLACEMENTS
from minigpt.model.positional import POSITIONAL
from minigpt.model.shape import INIT_STD
from minigpt.model.visibility import Prefix, Unpadded, Visibility, earlier, everything


class Stack(nn.Module):
    """Blocks with an embedding of `n_tokens` tokens. (b, t) -> (b, t, d). Not initialised.

    `config.architecture` says which keys a query can see.
    """

    def __init__(self, config: ModelConfig, n_tokens: int) -> None:
        super().__init__()
        self.config, shape = config, config.shape
        self.token_embedding = nn.Embedding(n_tokens, config.n_embd)
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
        self.backend: Backend = BACKENDS["eager"]
        self.backend_without_gradients: Backend | None = None  # None: the same backend

    def initialise(self) -> None:
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

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        auxiliary: Auxiliary | None = None,
        lengths: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return the final hidden states (b, t, d) of `tokens` (b, t), the input of the head.

        `positions` (b or 1, t): absolute positions, by default 0 to t - 1. `cache`: the KV cache;
        tokens attend to its content and are appended to it. `document_ids` (b, t), int64,
        non-decreasing along t: tokens attend only to their own document, and default positions
        restart at 0 in each. `auxiliary`: receives losses and metrics of layers. `lengths` (b,):
        the tokens of each row that all queries see: of an encoder all but padding, otherwise a
        prefix. `memory`: what the blocks of a decoder with cross-attention read. Raises UserError
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
            visible=self._visible(lengths),
            memory=memory,
            auxiliary=auxiliary,
        )
        x = self.dropout(self.embedding_norm(self.positional.embed(x, positions)))
        if self.config.value_residual == "x0":
            ctx.x0 = F.rms_norm(x, x.shape[-1:])
        return self.final_norm(self._apply_blocks(x, ctx)[:, :n_tokens])

    def _visible(self, lengths: Tensor | None) -> Visibility:
        """Return which keys a query can see; `lengths`: see `hidden`."""
        if self.config.architecture == "encoder":
            return everything if lengths is None else Unpadded(lengths)
        return earlier if lengths is None else Prefix(lengths)

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

    def flops_of_blocks(self, batch_size: int, length: int) -> float:
        """Return the FLOPs per token of the blocks, in training on windows of `length`."""
        blocks = [module for module in self.blocks if isinstance(module, Block)]
        linear = sum(linear_flops(b.self_attention) + b.ffn.flops_per_token() for b in blocks)
        attention = sum(each.flops_per_query(length) for each in self.attention_by_layer)
        in_blocks = linear + attention + self._bias_flops(batch_size, length)
        return in_blocks * self.attention.rows_per_token

    def _bias_flops(self, batch_size: int, length: int) -> float:
        """Return the training FLOPs per query of the positional scheme's bias, in all layers."""
        depends_on = self.positional.bias_depends_on
        attentions = self.attention_by_layer
        if depends_on == "positions":  # one bias for all layers that share an attention
            attentions = list(dict.fromkeys(attentions))
        keys = [each.keys_per_query(length) for each in attentions]
        flops = sum(map(self.positional.flops_per_query, keys))
        return flops if depends_on == "content" else flops / batch_size


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Return positions (b, t) that restart at 0 wherever the document id (b, t) changes."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    starts = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
