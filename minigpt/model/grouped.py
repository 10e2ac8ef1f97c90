"""Query heads that share key-value heads: grouped-query attention (Ainslie et al. 2023)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def repeat_kv(x: Tensor, q: Tensor) -> Tensor:
    """Repeat keys or values (b, n_kv_head, t, e) to one per query head."""
    n_shared = q.shape[1] // x.shape[1]
    return x if n_shared == 1 else x.repeat_interleave(n_shared, dim=1)


def grouped_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return x @ repeat_kv(y, x) without repeating y: (b, h, i, c), (b, n_kv_head, c, j)."""
    n_kv_head, length = y.shape[1], x.shape[2]
    if x.shape[1] == n_kv_head:
        return x @ y
    rows = rearrange(x, "b (h group) i c -> b h (group i) c", h=n_kv_head)
    return rearrange(rows @ y, "b h (group i) j -> b (h group) i j", i=length)
