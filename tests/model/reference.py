"""A GPT in loops over tokens, heads and keys: slow, and easy to check against the papers.

It shares no code with the package. `weights` are a model's parameters by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key
from typing import Any, ClassVar

import torch
from torch import Tensor

from minigpt.model import ModelConfig

Weights = Mapping[str, Tensor]
Vectors = list[Tensor]
"""One vector per token."""
Options = Mapping[str, Any]
FeedForward = Callable[[Vectors, Weights, str, Options], Vectors]
"""feed_forward(xs, weights, name, options): the outputs for the tokens of a text."""
Sees = Callable[[int, int], bool]
"""sees(i, j): whether a query at position i sees a key at position j, of those of the pattern."""


def visible(config: ModelConfig, length: int | None) -> Sees:
    """Keys up to the query's own; all, of an encoder; and a prefix (Raffel et al. 2020, 3.2.1)."""
    if config.architecture == "encoder":
        return lambda i, j: True
    if config.architecture == "prefix_decoder" and length is not None:
        return lambda i, j: j <= i or j < length
    return lambda i, j: j <= i


def has_later_keys(config: ModelConfig) -> bool:
    """Whether a design has parameters for keys after the query."""
    return config.architecture in ("prefix_decoder", "encoder")


@dataclass(frozen=True)
class Pair:
    """A query (e,) at position i and a key at position j that it sees, in one head of a layer.

    `keys`: position and vector of every key that it sees.
    """

    layer: int
    head: int
    i: int
    j: int
    query: Tensor
    keys: list[tuple[int, Tensor]]


class Positions:
    """A positional scheme for one token or one pair of tokens. By default it does nothing.

    `relative`: adding a constant to all positions changes nothing. `counts_gaps`: distances matter,
    not only the order. `odd_widths`: n_embd and head size may be odd. `harmless`: mutations of
    test_mutations.py that rightly change nothing, with the reason.
    """

    relative = False
    counts_gaps = True
    odd_widths = True
    harmless: ClassVar[dict[str, str]] = {}

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config, self.options = config, vars(config.positional)
        self.two_sided = has_later_keys(config)
        self.weights = {
            name.removeprefix("positional."): weight
            for name, weight in weights.items()
            if name.startswith("positional.")
        }
        self.base: float = self.options.get("base", math.nan)

    def embed(self, x: Tensor, position: int) -> Tensor:
        """Return the embedding (d,) of one token."""
        return x

    def block_input(self, x: Tensor, position: int, layer: int) -> Tensor:
        """Return the input (d,) of the query, key and value projections of one token."""
        return x

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Return the rotated query or key (e,) of one token and head."""
        return x

    def rotate_query(self, x: Tensor, position: int) -> Tensor:
        """Return the rotated query (e,), if not rotated as the key."""
        return self.rotate(x, position)

    def rotate_key(self, x: Tensor, position: int) -> Tensor:
        """Return the rotated key (e,), if not rotated as the query."""
        return self.rotate(x, position)

    def score(self, pair: Pair) -> Tensor | float:
        """Return the bias of the scaled, soft-capped score of a query and a key."""
        return 0.0

    def own(self, name: str, layer: int) -> Tensor:
        """Return a parameter of a layer: its own, or the shared one."""
        return self.weights[name][layer if self.options["layers"] == "own" else 0]


class Nope(Positions):
    """Nothing (Kazemnejad et al. 2023)."""

    relative, counts_gaps = True, False


class Learned(Positions):
    """h_0 = U W_e + W_p (Radford et al. 2018, equation 2)."""

    def embed(self, x: Tensor, position: int) -> Tensor:
        return x + self.weights["table.weight"][position]


def wave(position: int, d: int, base: float) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos of it (Vaswani et al. 2017, 3.5).

    10000 is the base.
    """
    values = []
    for i in range(d // 2):
        angle = position / base ** (2 * i / d)
        values += [math.sin(angle), math.cos(angle)]
    return torch.tensor(values)


class Sinusoidal(Positions):
    """sqrt(d) x + PE (Vaswani et al. 2017, 3.4 and 3.5)."""

    odd_widths = False

    def embed(self, x: Tensor, position: int) -> Tensor:
        return x * math.sqrt(len(x)) + wave(position, len(x), self.base)


class BlockInput(Positions):
    """A learned embedding per layer (Al-Rfou et al. 2018), or the same sinusoids before each layer.

    The latter is the Universal Transformer's (Dehghani et al. 2018). Here neither is added to the
    residual stream.
    """

    def block_input(self, x: Tensor, position: int, layer: int) -> Tensor:
        if self.options["table"] == "learned":
            return x + self.weights["table"][layer][position]
        return x + wave(position, len(x), self.base)


def rotate_pairs(x: Tensor, factors: list[Tensor]) -> Tensor:
    """Multiply channel pairs (k, k + n/2) of the first n, as complex numbers, by their factors."""
    half = len(factors)
    rotated = [torch.complex(x[k], x[k + half]) * factor for k, factor in enumerate(factors)]
    return torch.cat(
        (torch.stack([z.real for z in rotated] + [z.imag for z in rotated]), x[2 * half :])
    )


def polar(length: float, angle: float) -> Tensor:
    """length exp(i angle)."""
    return torch.polar(torch.tensor(length), torch.tensor(angle))


class Rope(Positions):
    """Each channel pair is a complex number times exp(i m theta_k) (Su et al. 2021, 3.2.2).

    theta_k = 10000^(-2(k-1)/n), k = 1 to n/2, of the first n channels. A pair is (k, k + n/2), as
    in GPT-NeoX. To extend the context by s: m becomes m / s (Chen et al. 2023); the base is
    multiplied by s^(n/(n-2)) (NTK-aware, bloc97 2023); or as in YaRN, see `kept`.
    """

    relative, odd_widths = True, False

    def rotate(self, x: Tensor, position: int) -> Tensor:
        n = int(len(x) * self.options["fraction"])
        s, scaling = self.options["factor"], self.options["scaling"]
        length = 0.1 * math.log(s) + 1 if scaling == "yarn" else 1.0
        factors = []
        for k in range(1, n // 2 + 1):
            base = self.base * s ** (n / (n - 2)) if scaling == "ntk" else self.base
            theta = base ** (-2 * (k - 1) / n)
            if scaling == "linear":
                theta /= s
            if scaling == "yarn":
                kept = self.kept(k - 1, n)
                theta = (1 - kept) * theta / s + kept * theta
            factors.append(polar(length, position * theta))
        return rotate_pairs(x, factors)

    def kept(self, k: int, n: int) -> float:
        """Return the fraction of its frequency that a pair keeps (Peng et al. 2023, 3.2).

        Pair d(r) = n ln(L / (2 pi r)) / (2 ln base) rotates r times in L positions: 1 up to pair
        d(32), 0 from d(1) on, both rounded outwards, and linear between them.
        """

        def pair(rotations: int) -> float:
            wavelength = self.config.block_size / rotations
            return n * math.log(wavelength / (2 * math.pi)) / (2 * math.log(self.base))

        low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), n - 1)
        if k <= low:
            return 1.0
        return 0.0 if k >= high else 1 - (k - low) / (high - low)


class Xpos(Positions):
    """Queries times (zeta e^(i theta))^n, keys times (zeta^-1 e^(i theta))^m (Sun et al. 2022).

    zeta_k = (k / (e/2) + gamma) / (1 + gamma), k = 0 to e/2 - 1, to the power of n / scale_base.
    """

    relative, odd_widths = True, False

    def rotate_query(self, x: Tensor, position: int) -> Tensor:
        return self.scaled_rotation(x, position, 1)

    def rotate_key(self, x: Tensor, position: int) -> Tensor:
        return self.scaled_rotation(x, position, -1)

    def scaled_rotation(self, x: Tensor, position: int, sign: int) -> Tensor:
        factors = []
        for k in range(len(x) // 2):
            zeta = (k / (len(x) / 2) + self.options["gamma"]) / (1 + self.options["gamma"])
            length = zeta ** (sign * position / self.options["scale_base"])
            factors.append(polar(length, position * self.base ** (-2 * k / len(x))))
        return rotate_pairs(x, factors)


class Alibi(Positions):
    """q_i k_j + m (j - i) (Press et al. 2021, section 3).

    For n heads the slopes m are the geometric sequence that starts at 2^(-8/n) with that ratio.
    Where n is no power of two: the closest lower power's, then every other one of its double's.
    For later keys, the distance is as far as to earlier ones.
    """

    relative = True
    harmless: ClassVar[dict[str, str]] = {
        "queries one further": "adds the same to every score of a query"
    }

    def score(self, pair: Pair) -> Tensor | float:
        learned = self.options["slopes"] == "learned"
        slopes = self.weights["slopes"] if learned else self.slopes(self.config.n_head)
        return -slopes[pair.head] * abs(pair.j - pair.i)

    def slopes(self, n: int) -> list[float]:
        lower = 2 ** math.floor(math.log2(n))
        if n == lower:
            start = ratio = 2 ** (-8 / n)
            return [start * ratio**k for k in range(n)]
        return self.slopes(lower) + self.slopes(2 * lower)[0::2][: n - lower]


class Integrated(Positions):
    """q_i . P_j / sqrt(e), the word-to-position product (named by Ke et al. 2021, section 3.1).

    The query is the content's; P is the layer's, or the head's.
    """

    harmless: ClassVar[dict[str, str]] = {
        "queries one further": "does not depend on the query's position",
        "decoding restarts at 0": "does not depend on the query's position",
    }

    def score(self, pair: Pair) -> Tensor | float:
        head = pair.head if self.options["heads"] == "own" else 0
        vector = self.weights["table"][pair.layer, head, pair.j]
        return (pair.query * vector).sum() / math.sqrt(len(vector))


class Relative(Positions):
    """e_ij = q_i . (k_j + a_ij) / sqrt(e), a_ij = w_clip(j - i, k) (Shaw et al. 2018, eq. 4).

    Row n of the table is w_-n; with later keys, w_k is the first row.
    """

    relative = True

    def score(self, pair: Pair) -> Tensor | float:
        longest = self.options["max_distance"]
        distance = pair.i - pair.j
        if longest is not None:
            distance = max(-longest, min(longest, distance))
        first = self.config.block_size - 1 if longest is None else longest
        row = first + distance if self.two_sided else distance
        vector = self.weights["table"][pair.layer, row]
        return (pair.query * vector).sum() / math.sqrt(len(vector))


class RelativeBias(Positions):
    """A number of the head and distance (Raffel et al. 2020, 2.1, a bucket for each distance).

    With later keys, the first is that of the last key for the first query.
    """

    relative = True

    def score(self, pair: Pair) -> Tensor | float:
        first = self.config.block_size - 1 if self.two_sided else 0
        return self.own("bias", pair.layer)[pair.head, first + pair.i - pair.j]


class T5(Positions):
    """A number of the head and the distance's bucket (Raffel et al. 2020, 2.1).

    Half of the n buckets hold one distance each. The others divide n/2 to `max_distance` evenly in
    logarithms; all from there on are in the last. With later keys, half of all buckets are theirs.
    """

    relative = True

    def score(self, pair: Pair) -> Tensor | float:
        n, distance = self.options["buckets"], pair.i - pair.j
        if self.two_sided:
            n //= 2
            bucket = self.bucket(n, -distance) + n if distance < 0 else self.bucket(n, distance)
        else:
            bucket = self.bucket(n, distance)
        return self.own("bias", pair.layer)[pair.head, bucket]

    def bucket(self, n: int, distance: int) -> int:
        """Return the bucket, of n for one side, of a distance on it."""
        longest, half = self.options["max_distance"], n // 2
        if distance >= longest:
            return n - 1
        if distance < half:
            return distance
        return half + math.floor((n - half) * math.log(distance / half) / math.log(longest / half))


class Kerple(Positions):
    """-r1 log(1 + r2 |m - n|), r1, r2 > 0 (Chi et al. 2022, equation 3), kept as logarithms."""

    relative = True

    def score(self, pair: Pair) -> Tensor | float:
        r1, r2 = (self.own(name, pair.layer)[pair.head].exp() for name in ("log_p", "log_a"))
        return -r1 * torch.log(1 + r2 * abs(pair.i - pair.j))


class Fire(Positions):
    """b(i, j) = f(psi(i - j) / psi(max(L, i))), psi(x) = log(c x + 1) (Li et al. 2023, section 3).

    f is a network with one hidden ReLU layer and an output a head. As in the authors' code c and L
    are made positive by |.|, L is a learned factor times where it starts, and 10^-6 is added to
    the divisor. With later keys: f(psi(|i - j|) / psi(max(L, i, j))), which is at most f(1).
    """

    def score(self, pair: Pair) -> Tensor | float:
        c, factor = (self.own(name, pair.layer).abs() for name in ("c", "length"))
        length = factor * self.options["threshold"] * self.config.block_size
        last = max(pair.i, pair.j)  # the query's, unless the key is later
        longest = length if length > last else torch.tensor(float(last))
        share = torch.log(c * abs(pair.i - pair.j) + 1) / (torch.log(c * longest + 1) + 1e-6)
        up, bias = (self.own(name, pair.layer) for name in ("up", "up_bias"))
        return (self.own("down", pair.layer)[pair.head] * relu(up * share + bias)).sum()


class Cope(Positions):
    """q_i . e[p_ij], p_ij the sum of g_ik over k from j to i (Golovneva et al. 2024, 3 to 5).

    g_ik = sigmoid(q_i . k_k), with the authors' code of q_i . k_k / sqrt(e). Between two whole
    numbers e[p] is interpolated; p ends at the largest position.
    """

    relative, counts_gaps = True, False
    harmless: ClassVar[dict[str, str]] = {
        "first row's positions for all": "depends on their order only, which is the same"
    }

    def score(self, pair: Pair) -> Tensor | float:
        table, q = self.weights["table"][pair.layer], pair.query
        last = self.options["max_position"] or self.config.block_size
        p = torch.zeros(())
        for position, key in pair.keys:
            if position >= pair.j:
                p = p + 1 / (1 + torch.exp(-(q * key).sum() / math.sqrt(len(q))))
        if p >= last:
            return (q * table[last]).sum()
        low = math.floor(p.item())
        share = p - low
        return share * (q * table[low + 1]).sum() + (1 - share) * (q * table[low]).sum()


@dataclass(frozen=True)
class Row:
    """A row of x: its position, and whether it is a landmark instead of a token."""

    position: int
    landmark: bool = False


@dataclass(frozen=True)
class Head:
    """Queries, keys and values of one head of a layer, one vector per row, before the rotation."""

    layer: int
    head: int
    queries: Vectors
    keys: Vectors
    values: Vectors


class FullAttention:
    """The attention of one head: a softmax over every key that the query sees."""

    def __init__(
        self, config: ModelConfig, scheme: Positions, weights: Weights, sees: Sees
    ) -> None:
        self.config, self.scheme, self.weights, self.sees = config, scheme, weights, sees
        self.options, self.two_sided = vars(config.attention), has_later_keys(config)

    def attends(self, head: int, i: int, j: int) -> bool:
        """Whether a query at position i attends to a key at j that it sees."""
        return True

    def landmarks(self, positions: list[int]) -> list[Row]:
        """Return the rows that are landmarks."""
        return []

    def scores(self, head: Head, rows: list[Row], row: int) -> dict[int, Tensor]:
        """Return the scores of the keys that a row attends to, by row of the key."""
        i = rows[row].position
        query = self.scheme.rotate_query(head.queries[row], i)
        keys = [
            (at.position, self.scheme.rotate_key(key, at.position))
            for key, at in zip(head.keys, rows, strict=True)
        ]
        seen = [(j, key) for j, key in keys if self.sees(i, j)]
        return {
            other: self.score(Pair(head.layer, head.head, i, j, query, seen), key)
            for other, (j, key) in enumerate(keys)
            if self.sees(i, j) and self.attends(head.head, i, j)
        }

    def score(self, pair: Pair, key: Tensor) -> Tensor:
        """Return the scaled, soft-capped product plus the bias."""
        return product_of(self.config, pair.query, key) + self.scheme.score(pair)

    def mix(self, head: Head, rows: list[Row]) -> Vectors:
        """Return the weighted mean of values for each row."""
        result = []
        for row in range(len(rows)):
            weights = softmax(self.scores(head, rows, row))
            result.append(sum_of(weights, head.values))
        return result


def product_of(config: ModelConfig, query: Tensor, key: Tensor) -> Tensor:
    """q . k / sqrt(e), between -c and c if it is capped: c tanh of it / c."""
    product, cap = (query * key).sum() / math.sqrt(len(key)), config.logit_softcap
    return product if cap is None else cap * torch.tanh(product / cap)


def softmax(scores: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """exp(s) over their sum."""
    total = torch.stack([torch.exp(score) for score in scores.values()]).sum()
    return {row: torch.exp(score) / total for row, score in scores.items()}


def sum_of(weights: Mapping[int, Tensor], values: Vectors) -> Tensor:
    """Values, weighted."""
    return torch.stack([weight * values[row] for row, weight in weights.items()]).sum(0)


class SlidingWindow(FullAttention):
    """The last w keys, including the query's own (Jiang et al. 2023, section 2).

    Of later keys, as many (Beltagy et al. 2020, 3.1).
    """

    def attends(self, head: int, i: int, j: int) -> bool:
        window = self.options["window"]
        return j in range(i - window + 1, i + window)


class Chunked(FullAttention):
    """The keys of the query's chunk."""

    def attends(self, head: int, i: int, j: int) -> bool:
        chunk = self.options["chunk"]
        first = i - i % chunk
        return j in range(first, first + chunk)


class BigBird(FullAttention):
    """Blocks: the last, the first and some random ones (Zaheer et al. 2020, section 2).

    With later keys: the neighbours on both sides, random ones of the block size's, and first blocks
    that see all and are seen by all.
    """

    def attends(self, head: int, i: int, j: int) -> bool:
        block, prime, size = self.options["block"], 2**31 - 1, self.config.block_size
        own, other = i // block, j // block
        drawn = []
        for draw in range(self.options["n_random"]):
            x = own * 7919 + head * 104729 + draw * 1299709 + self.options["seed"] * 15485863 + 1
            x = pow(x % prime, 2, prime) * 48271 % prime
            drawn.append(x * (math.ceil(size / block) if self.two_sided else own) // prime)
        window, n_global = self.options["n_window"], self.options["n_global"]
        if self.two_sided:
            near = other in range(own - window + 1, own + window) or own < n_global
        else:
            near = other in range(own - window + 1, own + 1)
        return near or other < n_global or other in drawn


class Performer(FullAttention):
    """sum_j phi(q_i).phi(k_j) v_j over sum_j phi(q_i).phi(k_j) (Choromanski et al. 2020, eq. 5).

    phi(x)_m = exp(w_m . x - |x|^2 / 2), positive features (lemma 1), of x over e^(1/4). The sum is
    over earlier keys, or all (equation 4).
    """

    def mix(self, head: Head, rows: list[Row]) -> Vectors:
        features = self.weights["attention.features"][head.layer]

        def phi(x: Tensor) -> Tensor:
            x = x / len(x) ** 0.25
            return torch.stack([torch.exp((w * x).sum() - (x * x).sum() / 2) for w in features])

        result = []
        for row, at in enumerate(rows):
            i, weights = at.position, {}
            query = phi(self.scheme.rotate_query(head.queries[row], i))
            for other, key in enumerate(rows):
                j = key.position
                # Earlier ones by the order of rows, not of positions.
                if not (self.sees(i, j) if self.two_sided else other <= row):
                    continue
                weights[other] = (query * phi(self.scheme.rotate_key(head.keys[other], j))).sum()
            total = torch.stack(list(weights.values())).sum()
            result.append(sum_of({o: w / total for o, w in weights.items()}, head.values))
        return result


class Landmark(FullAttention):
    """Grouped softmax (Mohtashami & Jaggi 2023, equations 1 to 4), one landmark per block.

    The group of a query: the keys of its block and the landmarks of earlier blocks, of which only
    those with the highest scores are kept. The weight of a landmark is divided among the keys of
    its block. A block too far back stands at the farthest distance of training.
    """

    def landmarks(self, positions: list[int]) -> list[Row]:
        size = self.options["block"]
        return [Row(p, landmark=True) for p in positions if p % size == size - 1]

    def highest(self, landmarks: dict[int, Tensor], rows: list[Row]) -> list[int]:
        """Return the rows of landmarks by falling score; of equal scores the later comes first.

        Scores that differ by rounding count as equal.
        """

        def compare(one: int, other: int) -> int:
            difference = landmarks[other].item() - landmarks[one].item()
            if abs(difference) < 1e-9:
                return rows[other].position - rows[one].position
            return 1 if difference > 0 else -1

        return sorted(landmarks, key=cmp_to_key(compare))

    def mix(self, head: Head, rows: list[Row]) -> Vectors:
        size = self.options["block"]
        farthest = self.config.block_size // size - 1
        result = []
        for row, at in enumerate(rows):
            own = at.position // size

            def score(other: int, row: int = row, i: int = at.position, own: int = own) -> Tensor:
                j = rows[other].position
                if own - j // size > farthest:
                    i, j = i % size + farthest * size, j % size
                query = self.scheme.rotate_query(head.queries[row], i)
                key = self.scheme.rotate_key(head.keys[other], j)
                return self.score(Pair(head.layer, head.head, i, j, query, []), key)

            group: dict[int, Tensor] = {}
            landmarks: dict[int, Tensor] = {}
            blocks: dict[int, dict[int, Tensor]] = {}
            for other, key in enumerate(rows):
                block = key.position // size
                if key.landmark and block < own:
                    landmarks[other] = score(other)
                elif not key.landmark and key.position <= at.position:
                    group_of = group if block == own else blocks.setdefault(block, {})
                    group_of[other] = score(other)
            n = self.options["retrieved"] or farthest
            for other in self.highest(landmarks, rows)[:n]:
                group[other] = landmarks[other]
            weights = {}
            for other, weight in softmax(group).items():
                if rows[other].landmark:
                    inside = softmax(blocks[rows[other].position // size])
                    weights |= {key: weight * part for key, part in inside.items()}
                else:
                    weights[other] = weight
            result.append(sum_of(weights, head.values))
        return result


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x (Hendrycks & Gimpel 2016)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016)."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, 0.0)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x / (1 + torch.exp(-x))


def two_maps(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Weights, str], Tensor]:
    """FFN(x) = W2 f(W1 x + b1) + b2."""

    def forward(x: Tensor, weights: Weights, name: str) -> Tensor:
        return linear(activation(linear(x, weights, f"{name}.up")), weights, f"{name}.out")

    return forward


def gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Weights, str], Tensor]:
    """FFN(x) = W2 (f(W1 x) * V x) (Shazeer 2020, equation 6). W1 stands above V."""

    def forward(x: Tensor, weights: Weights, name: str) -> Tensor:
        both = linear(x, weights, f"{name}.gate_up")
        half = len(both) // 2
        return linear(activation(both[:half]) * both[half:], weights, f"{name}.out")

    return forward


def each(forward: Callable[[Tensor, Weights, str], Tensor]) -> FeedForward:
    """The same for each token by itself."""
    return lambda xs, weights, name, options: [forward(x, weights, name) for x in xs]


def convolved(xs: Vectors, weights: Weights, name: str, options: Options) -> Vectors:
    """W2 f(c_0 W1 x_t + c_1 W1 x_(t-1) + ...), f = max(x, 0)^2 (So et al. 2021's convolution)."""
    taps = [*weights[f"{name}.taps"]][::-1]
    hidden = [linear(x, weights, f"{name}.up") for x in xs]
    result = []
    for t in range(len(xs)):
        terms = [tap * hidden[t - s] for s, tap in enumerate(taps) if s <= t]
        result.append(linear(relu(torch.stack(terms).sum(0)) ** 2, weights, f"{name}.out"))
    return result


def router_probabilities(x: Tensor, weights: Weights, name: str) -> Vectors:
    """Softmax(x . W_g), a number an expert."""
    powers = [torch.exp((row * x).sum()) for row in weights[f"{name}.router.weight"]]
    return [power / sum(powers) for power in powers]


def chosen_experts(p: Vectors, n: int) -> list[int]:
    """The n likeliest."""
    return sorted(range(len(p)), key=lambda e: -p[e].item())[:n]


def mixture(xs: Vectors, weights: Weights, name: str, options: Options) -> Vectors:
    """The sum over the top k experts of Softmax(TopK(x . W_g))_i E_i(x) (Jiang et al. 2024, 2.1).

    The softmax over the k is that over all, over its sum among the k. With one expert of many it
    is p_i(x) E_i(x) (Fedus et al. 2021, equation 2).
    """
    expert, result = FEED_FORWARDS[options["expert"]], []
    for x in xs:
        p = router_probabilities(x, weights, name)
        chosen = chosen_experts(p, options["n_active"])
        total = sum(p[e] for e in chosen) if len(chosen) > 1 else 1.0
        y = torch.zeros(len(x))
        for e in chosen:
            y = y + p[e] / total * expert([x], weights, f"{name}.experts.{e}", options)[0]
        result.append(y)
    return result


def balance_loss(layers: list[list[Vectors]], n_active: int) -> Tensor:
    """N sum_i f_i P_i, the mean over layers (Fedus et al. 2021, equations 4 to 6).

    f_i is the share of assignments that go to expert i, P_i the mean of its probability. `layers`
    hold the probabilities of each token.
    """
    total = torch.zeros(())
    for tokens in layers:
        n = len(tokens[0])
        for i in range(n):
            f = sum(i in chosen_experts(p, n_active) for p in tokens) / (n_active * len(tokens))
            total = total + n * f * sum(p[i] for p in tokens) / len(tokens) / len(layers)
    return total


def layernorm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias (Ba et al. 2016)."""
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    y = (x - mean) / torch.sqrt(variance + eps) * weights.get(f"{name}.weight", 1.0)
    return y + weights.get(f"{name}.bias", 0.0)


def rmsnorm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    """x / sqrt(mean square + eps) * gain (Zhang & Sennrich 2019)."""
    return x / torch.sqrt((x**2).sum() / len(x) + eps) * weights.get(f"{name}.weight", 1.0)


# One row a registered variant.
POSITIONS: dict[str, type[Positions]] = {
    "alibi": Alibi,
    "block_input": BlockInput,
    "cope": Cope,
    "fire": Fire,
    "integrated": Integrated,
    "kerple": Kerple,
    "learned": Learned,
    "nope": Nope,
    "relative": Relative,
    "relative_bias": RelativeBias,
    "rope": Rope,
    "sinusoidal": Sinusoidal,
    "t5": T5,
    "xpos": Xpos,
}
# Options besides the defaults that the tests try. A scheme needs none.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "alibi": [{"slopes": "learned"}],
    "block_input": [{"table": "sinusoidal", "base": 10000.0}],
    "cope": [{"max_position": 3}],
    "fire": [{"layers": "own", "width": 5}, {"threshold": 4.0}],
    "integrated": [{"heads": "own"}],
    "kerple": [{"layers": "own"}],
    "relative": [{"max_distance": 3}],
    "relative_bias": [{"layers": "own"}],
    "rope": [
        {"fraction": 0.5},
        {"base": 10.0, "scaling": "linear", "factor": 4.0},
        {"base": 10.0, "scaling": "ntk", "factor": 4.0},
        {"base": 10.0, "scaling": "yarn", "factor": 4.0},
        {"fraction": 0.75, "scaling": "yarn", "factor": 2.5, "base": 50.0},
    ],
    "sinusoidal": [{"base": 10.0}],
    "t5": [{"layers": "own"}, {"buckets": 4, "max_distance": 6}],
    "xpos": [{"base": 10.0, "scale_base": 5.0, "gamma": 0.1}],
}
ATTENTIONS: dict[str, type[FullAttention]] = {
    "bigbird": BigBird,
    "chunked": Chunked,
    "full": FullAttention,
    "landmark": Landmark,
    "performer": Performer,
    "sliding_window": SlidingWindow,
}
# Options of the tests, for texts of seven tokens and more.
ATTENTION_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "bigbird": [
        {"block": 2, "n_window": 1, "n_global": 1, "n_random": 1},
        {"block": 1, "n_window": 2, "n_global": 0, "n_random": 2, "seed": 3},
    ],
    "chunked": [{"chunk": 3}, {"chunk": 4, "layers": ["chunked", "full"]}],
    "full": [{}],
    "landmark": [{"block": 2}, {"block": 2, "retrieved": 1}, {"block": 1, "retrieved": 3}],
    "performer": [{"features": 5}, {"features": 6, "layers": ["full", "performer"]}],
    "sliding_window": [{"window": 3}, {"window": 1, "layers": ["full", "sliding_window"]}],
}
FEED_FORWARDS: dict[str, FeedForward] = {
    "conv": convolved,
    "gelu": each(two_maps(gelu)),
    "gelu_tanh": each(two_maps(gelu_tanh)),
    "relu": each(two_maps(relu)),
    "relu2": each(two_maps(lambda x: relu(x) ** 2)),
    "swiglu": each(gated(swish)),
    "geglu": each(gated(gelu)),
    "geglu_tanh": each(gated(gelu_tanh)),
    "moe": mixture,
}
NORMS: dict[str, Callable[[Tensor, Weights, str, float], Tensor]] = {
    "layernorm": layernorm,
    "rmsnorm": rmsnorm,
}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """W x + b, or W x where the map has no bias."""
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def reference_logits(
    config: ModelConfig,
    weights: Weights,
    n_vocab: int,
    tokens: Tensor,
    positions: Tensor,
    lengths: Sequence[int] | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Logits (b, t, n_vocab) of tokens (b, t) at positions (b, t).

    `lengths`: of the prefix of each row, or of what is followed by padding: in the tokens of an
    encoder, or in the source (b, s) of an encoder and decoder. Logits of padding are 0.
    """
    texts = []
    for row, (row_tokens, places) in enumerate(
        zip(tokens.tolist(), positions.tolist(), strict=True)
    ):
        length = None if lengths is None else lengths[row]
        read: Vectors = []
        if source is not None:
            read = encoded(config, weights, source[row, :length].tolist())
            length = None
        if config.architecture == "encoder":
            row_tokens, places = row_tokens[:length], places[:length]
        logits = one_text(config, weights, row_tokens, places, length, read)
        padding = [torch.zeros(len(logits[0]))] * (tokens.shape[1] - len(logits))
        texts.append(torch.stack(logits + padding))
    return torch.stack(texts)[:, :, :n_vocab]


def encoded(config: ModelConfig, weights: Weights, tokens: list[int]) -> Vectors:
    """What the encoder of an encoder and decoder makes of a source, without its padding.

    Its weights are named `encoder.`; it has its own token table unless it shares the decoder's.
    """
    n_layer = config.n_layer if config.n_encoder_layer is None else config.n_encoder_layer
    design = replace(config, architecture="encoder", n_layer=n_layer, n_encoder_layer=None)
    own = {name: weight for name, weight in weights.items() if name.startswith("encoder.")}
    own = {name.removeprefix("encoder."): weight for name, weight in own.items()}
    if config.shared_embedding:
        own["token_embedding.weight"] = weights["token_embedding.weight"]
    return last_states(design, own, tokens, [*range(len(tokens))])


def reference_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target)."""
    losses = []
    for row, row_targets in zip(logits, targets.tolist(), strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            losses.append(torch.log(torch.exp(scores).sum()) - scores[target])
    return torch.stack(losses).sum() / len(losses)


def row_of(scheme: str) -> type[Positions]:
    """The row of a scheme. Fails with what to do where there is none."""
    assert scheme in POSITIONS, (
        f"positional={scheme} is registered: give it a row in POSITIONS of reference.py, "
        f"its formula written again from its paper"
    )
    return POSITIONS[scheme]


def one_text(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    positions: list[int],
    length: int | None,
    source: Vectors,
) -> Vectors:
    """Logits at each token of one text, see `last_states`."""
    xs = last_states(config, weights, tokens, positions, length, source)
    head = weights["head.weight" if config.embedding.name == "untied" else "token_embedding.weight"]
    logits, cap = [head @ x for x in xs], config.final_softcap
    return logits if cap is None else [cap * torch.tanh(x / cap) for x in logits]


def last_states(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    positions: list[int],
    length: int | None = None,
    source: Sequence[Tensor] = (),
) -> Vectors:
    """What the head reads, for each token of one text.

    `length`: of a prefix. `source`: what the encoder made of the tokens of another text.
    """
    scheme = row_of(config.positional.name)(config, weights)
    sees = visible(config, length)
    own_attention = ATTENTIONS[config.attention.name](config, scheme, weights, sees)
    table = weights["token_embedding.weight"]
    marks = own_attention.landmarks(positions)
    rows = [*map(Row, positions), *marks]
    xs = [*(table[token] for token in tokens), *(weights["attention.mark"] for _ in marks)]
    if config.embedding.scale:
        xs = [x * math.sqrt(config.n_embd) for x in xs]
    xs = [scheme.embed(x, at.position) for x, at in zip(xs, rows, strict=True)]

    has_norm = config.norm.on_embeddings
    if has_norm or (has_norm is None and config.norm.placement == "peri"):
        xs = [normalised(config, x, weights, "embedding_norm") for x in xs]
    # What value residuals read: x0, or the values that the first layer leaves here.
    first_values = [unit(x) for x in xs] if config.value_residual == "x0" else []
    outputs: list[Vectors] = []
    for layer in range(config.n_layer):
        mirror = config.n_layer - 1 - layer
        if config.unet_skips and mirror < layer:
            part = weights["skip_weights"][layer - (config.n_layer + 1) // 2]
            xs = [x + part * y for x, y in zip(xs, outputs[mirror], strict=True)]

        def attend(inputs: Vectors, layer: int = layer) -> Vectors:
            names = getattr(config.attention, "layers", [config.attention.name])
            own = names[layer % len(names)] == config.attention.name
            of_layer = own_attention if own else FullAttention(config, scheme, weights, sees)
            return attention(of_layer, layer, inputs, rows, first_values)

        def feed_forward(inputs: Vectors, name: str = f"blocks.{layer}.ffn") -> Vectors:
            return FEED_FORWARDS[config.ffn.name](inputs, weights, name, vars(config.ffn))

        def read(inputs: Vectors, name: str = f"blocks.{layer}.cross_attention") -> Vectors:
            return cross_attention(config, weights, name, inputs, source)

        names = [f"blocks.{layer}.attention", f"blocks.{layer}.ffn"]
        if config.block == "sequential":
            xs = residual(config, weights, xs, attend, names[0])
            if config.architecture == "encoder_decoder":
                xs = residual(config, weights, xs, read, f"blocks.{layer}.cross_attention")
            xs = residual(config, weights, xs, feed_forward, names[1])
        else:
            norms = [f"{names[0] if config.block == 'parallel_shared' else n}_norm" for n in names]
            changes = zip(
                changes_of(config, weights, xs, attend, names[0], norms[0]),
                changes_of(config, weights, xs, feed_forward, names[1], norms[1]),
                strict=True,
            )
            xs = [x + sum(each_change) for x, each_change in zip(xs, changes, strict=True)]
        outputs.append(xs)
    if config.norm.placement not in ("post", "no_residual"):
        xs = [normalised(config, x, weights, "final_norm") for x in xs]
    return xs[: len(tokens)]


def normalised(config: ModelConfig, x: Tensor, weights: Weights, name: str) -> Tensor:
    """The norm of this name, whose gain is 1 + w with a unit offset."""
    if config.norm.unit_offset:
        weights = {**weights, f"{name}.weight": 1 + weights[f"{name}.weight"]}
    return NORMS[config.norm.kind](x, weights, name, config.norm.eps)


def residual(
    config: ModelConfig,
    weights: Weights,
    xs: Vectors,
    sublayer: Callable[[Vectors], Vectors],
    name: str,
) -> Vectors:
    """f(x) (no_residual), norm(x + f(x)) (post), or x and one of `changes_of`."""
    if config.norm.placement == "no_residual":
        return sublayer(xs)
    if config.norm.placement == "post":
        sums = [x + y for x, y in zip(xs, sublayer(xs), strict=True)]
        return [normalised(config, x, weights, f"{name}_norm") for x in sums]
    changes = changes_of(config, weights, xs, sublayer, name, f"{name}_norm")
    return [x + change for x, change in zip(xs, changes, strict=True)]


def changes_of(
    config: ModelConfig,
    weights: Weights,
    xs: Vectors,
    sublayer: Callable[[Vectors], Vectors],
    name: str,
    norm: str,
) -> Vectors:
    """f(norm(x)) (pre), norm(f(norm(x))) (sandwich, peri) or norm(f(x)) (output)."""
    if config.norm.placement != "output":
        xs = [normalised(config, x, weights, norm) for x in xs]
    changes = sublayer(xs)
    if config.norm.placement == "pre":
        return changes
    return [normalised(config, change, weights, f"{name}_output_norm") for change in changes]


def attention(
    own_attention: FullAttention, layer: int, xs: Vectors, rows: list[Row], first_values: Vectors
) -> Vectors:
    """Queries, keys and values of each head, mixed, and mapped out again.

    A value residual is V_l = l1 V_l + l2 V_1 (Zhou et al. 2024, section 3.2); the first layer
    leaves its values in `first_values`. With x0, which `first_values` then has over its RMS, it is
    V_l = V_l + W x0. Head gates multiply each head by 2 sigmoid(w x). With fewer heads for keys and
    values, as many neighbouring queries share each (Ainslie et al. 2023, section 2.2).
    """
    config, weights, scheme = own_attention.config, own_attention.weights, own_attention.scheme
    name = f"blocks.{layer}.self_attention"
    size = config.head_size or config.n_embd // config.n_head
    n_kv_head = config.n_kv_head or config.n_head
    widths = [config.n_head * size, n_kv_head * size, n_kv_head * size]
    projected, gates = [], []
    for x, at in zip(xs, rows, strict=True):
        x = scheme.block_input(x, at.position, layer)
        if config.head_gates:
            gates.append(2 / (1 + torch.exp(-linear(x, weights, f"{name}.head_gates"))))
        projected.append([*linear(x, weights, f"{name}.qkv").split(widths)])
    if config.value_residual == "x0" and layer > 0:
        for vectors, x0 in zip(projected, first_values, strict=True):
            vectors[2] = vectors[2] + linear(x0, weights, f"{name}.x0_values")
    elif config.value_residual == "first_layer" and layer == 0:
        first_values += [v for _, _, v in projected]
    elif config.value_residual == "first_layer":
        own, first = weights[f"{name}.value_weights"]
        for vectors, first_value in zip(projected, first_values, strict=True):
            vectors[2] = own * vectors[2] + first * first_value
    queries = [queries_of(config, weights, name, q) for q, _, _ in projected]
    keys = [keys_of(config, weights, name, k) for _, k, _ in projected]
    values = [v.split(size) for _, _, v in projected]
    heads = []
    for head in range(config.n_head):
        kv_head = head // (config.n_head // n_kv_head)
        of_head = Head(
            *(layer, head, [q[head] for q in queries]),
            *([k[kv_head] for k in keys], [v[kv_head] for v in values]),
        )
        mixed = own_attention.mix(of_head, rows)
        if config.head_gates:
            mixed = [gate[head] * y for gate, y in zip(gates, mixed, strict=True)]
        heads.append(mixed)
    by_row = zip(*heads, strict=True)
    return [linear(torch.cat(of_row), weights, f"{name}.out") for of_row in by_row]


def cross_attention(
    config: ModelConfig, weights: Weights, name: str, xs: Vectors, source: Sequence[Tensor]
) -> Vectors:
    """Queries of the decoder, keys and values of the encoder's output (Vaswani et al. 2017, 3.2.3).

    Without positions, which T5 has in self-attention only (Raffel et al. 2020, 2.1).
    """
    size = config.head_size or config.n_embd // config.n_head
    n_kv_head = config.n_kv_head or config.n_head
    both = [linear(y, weights, f"{name}.kv").split(n_kv_head * size) for y in source]
    keys = [keys_of(config, weights, name, k) for k, _ in both]
    values = [v.split(size) for _, v in both]
    result = []
    for x in xs:
        heads = []
        queries = queries_of(config, weights, name, linear(x, weights, f"{name}.q"))
        for head, query in enumerate(queries):
            kv_head = head // (config.n_head // n_kv_head)
            scores = {j: product_of(config, query, key[kv_head]) for j, key in enumerate(keys)}
            heads.append(sum_of(softmax(scores), [value[kv_head] for value in values]))
        result.append(linear(torch.cat(heads), weights, f"{name}.out"))
    return result


def queries_of(config: ModelConfig, weights: Weights, name: str, q: Tensor) -> Vectors:
    """The query of each head, from those of all together."""
    size = config.head_size or config.n_embd // config.n_head
    queries = []
    if config.qk_norm == "all_channels":
        q = rmsnorm(q, weights, f"{name}.q_norm", config.norm.eps)
    for head, query in enumerate(q.split(size)):
        if config.qk_norm in (True, "gain"):
            query = unit(query)
        if config.qk_norm == "gain":
            query = query * weights[f"{name}.qk_gain"][head]
        if config.score_scale is not None:  # instead of 1 / sqrt(size), which `product_of` applies
            query = query * config.score_scale * math.sqrt(size)
        queries.append(query)
    return queries


def keys_of(config: ModelConfig, weights: Weights, name: str, k: Tensor) -> Vectors:
    """The key of each head of keys, from those of all together."""
    if config.qk_norm == "all_channels":
        k = rmsnorm(k, weights, f"{name}.k_norm", config.norm.eps)
    keys = k.split(config.head_size or config.n_embd // config.n_head)
    return [unit(key) if config.qk_norm in (True, "gain") else key for key in keys]


def unit(x: Tensor) -> Tensor:
    """x over its root mean square."""
    return x / torch.sqrt((x**2).sum() / len(x) + torch.finfo(x.dtype).eps)
