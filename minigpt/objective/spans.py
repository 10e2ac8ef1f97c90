"""Random spans of a window, as in T5."""

from __future__ import annotations

import torch
from torch import Tensor


def span_counts(length: int, fraction: float, span: float) -> tuple[int, int]:
    """Return the number of noise tokens in a window of `length`, and of their spans.

    `fraction` of the tokens, in spans of mean length `span`. One at least is noise, and one at
    least stays if there are several.
    """
    n_noise = max(1, min(length - 1, round(fraction * length)))
    return n_noise, max(1, min(round(n_noise / span), length - n_noise))


def random_spans(
    n: int, length: int, n_noise: int, n_spans: int, generator: torch.Generator
) -> Tensor:
    """Return for each token of n windows the number of its span: (n, length), from 0.

    Even numbers are tokens that stay, odd ones are noise; the two alternate, beginning with
    tokens that stay. Lengths are those of a random composition of each number of tokens (Raffel et
    al. 2020, section 3.1.4, as in the authors' code).
    """
    kept = _composition(n, length - n_noise, n_spans, generator)
    noise = _composition(n, n_noise, n_spans, generator)
    ends = torch.stack((kept, noise), 2).flatten(1).cumsum(1)  # kept, noise, kept, noise, ...
    index = torch.arange(length, device=ends.device).expand(n, -1).contiguous()
    return torch.searchsorted(ends, index, right=True)


def _composition(n: int, total: int, parts: int, generator: torch.Generator) -> Tensor:
    """Return n random compositions of a total into `parts` parts of 1 or more: (n, parts).

    With fewer than two parts, or a total below `parts`, the last part has the whole total.
    """
    device = generator.device
    if parts < 2:
        return torch.full((n, 1), total, device=device)
    order = torch.rand(n, total - 1, generator=generator, device=device).argsort(1)
    cuts = order[:, : parts - 1].sort(1).values + 1
    edges = torch.nn.functional.pad(cuts, (1, 1))
    edges[:, -1] = total
    return edges.diff(dim=1)
