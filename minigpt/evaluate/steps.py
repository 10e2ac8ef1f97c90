"""The prediction at one position, step by step: what a forward pass computed, with shapes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.evaluate.inspect import Recording
from minigpt.model import GPT
from minigpt.model.attention import Attention
from minigpt.model.backends import capped_scores
from minigpt.model.context import ForwardContext

LAYER, HEAD = 0, 0  # the layer that reads the embedding of the steps before it


@dataclass(frozen=True)
class Step:
    """A stage: its formula, the names and sizes of its axes, and its values.

    `values` (n,) or (rows, n), on the CPU: floats, or integers if they are token ids. None if the
    model has no such stage: `note` says why.
    """

    name: str
    formula: str
    axes: str = ""
    values: Tensor | None = None
    note: str = ""

    @property
    def shape(self) -> str:
        """The axes with their sizes, such as `(t, d) = (8, 32)`."""
        if self.values is None:
            return ""
        names = f"({self.axes})" if self.values.ndim > 1 else self.axes
        sizes = ", ".join(map(str, self.values.shape))
        return f"{names} = ({sizes})" if self.values.ndim > 1 else f"{names} = {sizes}"


@dataclass
class Watch:
    """Keeps what modules of a model read and return, in the forward passes inside the block."""

    model: GPT
    read: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    returned: dict[str, Tensor] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        model = self.model
        self._hooks = ExitStack()
        for name in ("token_embedding", "embedding_norm", "final_norm"):
            self._keep(name, getattr(model, name))
        if model.attention_by_layer:
            self._keep("attention", model.attention_by_layer[LAYER])
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _keep(self, name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if name == "attention" and inputs[4] != LAYER:  # one module is used in all layers
                return
            self.read[name], self.returned[name] = inputs, output

        self._hooks.callback(module.register_forward_hook(keep).remove)


@torch.no_grad()
def steps(watch: Watch, recording: Recording, position: int) -> list[Step]:
    """Return the stages of the prediction at `position`, from the watched pass of `record`."""
    model, n = watch.model, recording.n_tokens
    embedded, hidden = watch.read["embedding_norm"][0], watch.read["final_norm"][0]
    logits, cap = recording.logits[position], model.config.final_softcap
    capped = "" if cap is None else f", softcap {cap:g}"
    scaled = " sqrt(d)" * model.config.embedding.scale
    drafts = [
        Step("Tokens", "ids", "t", watch.read["token_embedding"][0][0]),
        Step("Embedding", "E[token]", "t, d", watch.returned["token_embedding"][0]),
        _positions(model, embedded[0, :n], scaled),
        *_embedding_norm(watch, n),
        *_attention(watch, recording, position),
        Step("After the blocks", f"x after {_layers(model)}", "d", hidden[0, position]),
        _final_norm(model, watch.returned["final_norm"][0, position]),
        Step("Logits", f"W x{capped}", "n", logits),
        Step("Probabilities", "softmax(logits)", "n", logits.softmax(-1)),
    ]
    return [_on_cpu(step) for step in drafts]


def _on_cpu(step: Step) -> Step:
    values = step.values
    if values is None:
        return step
    return replace(step, values=(values.float() if values.is_floating_point() else values).cpu())


def _layers(model: GPT) -> str:
    n = model.config.n_layer
    return f"{n} block" if n == 1 else f"{n} blocks"


def _positions(model: GPT, embedded: Tensor, scaled: str) -> Step:
    """Return the first input of the blocks, or where else positions enter."""
    scheme, name = model.positional, model.config.positional.name
    if scheme.overrides("embed"):
        assert scheme.__doc__ is not None
        formula = scheme.__doc__.partition("\n")[0]
        return Step("Positions", f"{name} of x = E[token]{scaled}", "t, d", embedded, formula)
    places = {
        "block_input": "added to the input of each block",
        "rotate": "queries and keys are rotated",
        "score_mod": "a bias of the scores",
    }
    enter = [text for hook, text in places.items() if scheme.overrides(hook)]
    what = "nothing" if model.config.architecture == "encoder" else "only the mask"
    why = " and ".join(enter) or f"{what} depends on the order of tokens"
    formula = f"x = E[token]{scaled}"
    return Step("Positions", formula, note=f"None added here. {name}: {why}.")


def _embedding_norm(watch: Watch, n: int) -> list[Step]:
    if isinstance(watch.model.embedding_norm, nn.Identity):
        return []
    kind, values = watch.model.config.norm.kind, watch.returned["embedding_norm"][0, :n]
    return [Step("Embedding norm", f"{kind}(x)", "t, d", values)]


def _final_norm(model: GPT, values: Tensor) -> Step:
    if isinstance(model.final_norm, nn.Identity):
        return Step("Final norm", "", note=f"None: norm={model.config.norm.placement} has none.")
    return Step("Final norm", f"{model.config.norm.kind}(x)", "d", values)


def _attention(watch: Watch, recording: Recording, i: int) -> list[Step]:
    """Return the stages of one head for the query at position i."""
    if "attention" not in watch.read:
        return [Step("Attention", "", note="None: the model has no layers.")]
    n = recording.n_tokens
    q, k, _, ctx, layer, _ = watch.read["attention"]  # the arguments of Attention.forward
    rotated_q, rotated_k = ctx.positional.rotate(q, k, ctx.positions, layer)
    weights = recording.weights[LAYER][HEAD, i]
    shared = HEAD * k.shape[1] // q.shape[1]  # the key-value head of this head
    attention = watch.model.attention_by_layer[LAYER]
    config, name = watch.model.config, watch.model.config.attention.name
    changed = ", with QK-norm" * bool(config.qk_norm)
    changed += ", rotated" * ctx.positional.overrides("rotate")
    drafts = [
        Step("Query", f"q of the token{changed}", "e", rotated_q[0, HEAD, i]),
        Step("Keys", f"k of all tokens{changed}", "t, e", rotated_k[0, shared, :n]),
    ]
    if attention.uses_backend:
        drafts += _scores(attention, rotated_q, rotated_k, ctx, recording, i)
        formula = "softmax(scores)"
    else:
        why = f"None: attention={name} has no softmax over all scores."
        drafts.append(Step("Scores", "", note=why))
        formula = f"weights of {name}"
    drafts += [
        Step("Weights", formula, "t", weights.nan_to_num()),
        Step("Weighted sum", "sum of weight v", "e", watch.returned["attention"][0, HEAD, i]),
    ]
    if recording.cross:
        cross = recording.cross[LAYER][HEAD, i]
        drafts.append(Step("Cross-attention", "softmax over the source", "s", cross))
    return drafts


def _scores(
    attention: Attention, q: Tensor, k: Tensor, ctx: ForwardContext, recording: Recording, i: int
) -> list[Step]:
    """Return the scores, their positional bias and the mask, for rotated queries and keys."""
    n, cap = recording.n_tokens, ctx.logit_softcap
    bias = attention.bias_of(ctx, ctx.positions, ctx.positions, ctx.in_order)
    capped = "" if cap is None else f", softcap {cap:g}"
    masked = recording.weights[LAYER][HEAD, i].isnan()
    added = [Step("Bias", "", note="None: the scheme adds nothing to scores.")]
    if recording.biases:
        values = recording.biases[LAYER]
        values = values[HEAD % len(values), i]
        added = [Step("Bias", "scores + bias", "t", values)]
    seen = f"{int((~masked).sum())} of {n} keys are visible."
    return [
        Step("Scores", f"q k / sqrt(e){capped}", "t", capped_scores(q, k, bias)[0, HEAD, i, :n]),
        *added,
        Step("Mask", "1 where the query sees the key", "t", (~masked).float(), seen),
    ]
