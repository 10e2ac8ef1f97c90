"""The posts' claims: the sentence, what is tested, and how runs decide it.

A claim is judged in each setting by itself, from the signs of differences that are paired by seed,
see verdicts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from minigpt.files import read_json
from minigpt.report.comparison import LOSS
from minigpt.report.evaluations import CONTEXTS, at_length
from minigpt.report.runs import Run
from minigpt.report.statistics import Interval, Seeds, interval, minus
from minigpt.report.tables import Cell, Column, Table
from minigpt.run.directory import SEARCH
from studies.claims.evidence import MEASURED, POSTS, TUNED, Evidence
from studies.claims.trainings import BACKENDS, CACHE, EXPANSIONS, SEARCHES
from studies.claims.verdicts import (
    ALPHA,
    BETTER,
    BITS_TOLERANCE,
    FAILS,
    HOLDS,
    PARTLY,
    TOLERANCE,
    UNDECIDED,
    WORSE,
    Finding,
    better,
    effects_of,
    no_worse,
    verdict,
)

FAR = 0.1  # nats/token
MISSED = 0.5  # of searches, in which ASHA may miss the config of the full search
POSITIONAL, NORM, TOKENIZER = "model.positional.name", "model.norm.placement", "tokenizer.name"
EMBEDDING, HEADS, LAYERS = "model.embedding.name", "model.n_kv_head", "model.n_layer"
BIGRAM = {"model.name": "bigram", LAYERS: 0, POSITIONAL: "nope", EMBEDDING: "untied"}
INPUT_ONLY = ("learned", "sinusoidal")
INSIDE = ("block_input", "integrated", "relative", "relative_bias", "t5", "rope", "alibi")
BEYOND = ("alibi", "kerple", "t5", "rope", "sinusoidal")  # schemes without a maximum length
TOKENIZERS = ("char", "bpe", "gpt2")
LONG = "char, 96 tokens"  # about as much text as 32 tokens of bpe
TOKENIZER_PAIRS = (("char", "bpe"), ("char", "gpt2"), (LONG, "bpe"))
LONGER = (64, 128, 256)  # context lengths beyond the 32 of training


@dataclass(frozen=True)
class Claim:
    """A sentence of the posts, and what decides it.

    `tested`: what exactly, and where that is narrower than the sentence. `trainings`: names by
    setting; a setting that is not there does not apply, for the reason in `tested`.
    """

    sentence: str
    tested: str
    trainings: Mapping[str, Sequence[str]]
    judge: Callable[[Evidence], Finding]


# ---- helpers ----


def pairs_of(evidence: Evidence, key: str, pairs: Iterable[tuple[str, str]]) -> dict[str, Seeds]:
    """Return the differences of pairs of values of a key, under the name `one minus other`."""
    return {
        f"{one} minus {other}": minus(evidence.losses({key: one}), evidence.losses({key: other}))
        for one, other in pairs
    }


def means(heading: str, losses: Mapping[str, Seeds], unit: str = "nats/token") -> Table:
    """Return the mean loss of each design."""
    rows: list[list[Cell]] = [[label, interval([*s.values()])] for label, s in losses.items()]
    return Table("means", "Loss", [Column(heading), Column("value", unit)], rows)


def positional_losses(evidence: Evidence, names: Iterable[str]) -> dict[str, Seeds]:
    """Return the losses of positional schemes."""
    return {name: evidence.losses({POSITIONAL: name}) for name in names}


# ---- claims about positions ----


def inside_blocks(evidence: Evidence) -> Finding:
    pairs = [(one, other) for one in INSIDE for other in INPUT_ONLY]
    effects = effects_of(pairs_of(evidence, POSITIONAL, pairs))
    n_better, n_worse = (sum(effect.sign in s for effect in effects) for s in (BETTER, WORSE))
    reason = (
        f"Of {len(effects)} differences, significant improvements: {n_better}; significantly "
        f"worse: {n_worse}."
    )
    table = means("positional", positional_losses(evidence, (*INPUT_ONLY, *INSIDE)))
    return Finding(better(effects), reason, effects, [table])


def alike(evidence: Evidence) -> Finding:
    pairs = [("relative_bias", "alibi"), ("relative_bias", "rope"), ("alibi", "rope")]
    effects = effects_of(pairs_of(evidence, POSITIONAL, pairs))
    reason = f"The same: equivalent within {TOLERANCE} nats/token by TOST."
    answer = verdict(effects, lambda effect: effect.sign == "equivalent", {"below", "above"})
    return Finding(answer, reason, effects)


def parameters(evidence: Evidence) -> Finding:
    names = (*INPUT_ONLY, *INSIDE)
    counts = {n: evidence.number({POSITIONAL: n}, "parameters.positional") for n in names}
    rows: list[list[Cell]] = [[n, counts[n]] for n in sorted(counts, key=lambda n: counts[n])]
    others = [count for name, count in counts.items() if name not in ("alibi", "rope")]
    is_true = counts["alibi"] <= counts["rope"] <= min(others)
    table = Table("parameters", "Parameters", [Column("positional"), Column("n", "number")], rows)
    reason = "No scheme has fewer parameters than ALiBi, and no other one fewer than RoPE."
    return Finding(HOLDS if is_true else FAILS, reason, [], [table])


def beyond(evidence: Evidence) -> Finding:
    def at(name: str, n: int) -> Seeds:
        return at_length(evidence.design({POSITIONAL: name}), "last", n, LOSS, CONTEXTS)

    losses = {name: {n: at(name, n) for n in (32, *LONGER)} for name in BEYOND}
    differences = {
        f"{name} at {n} minus at 32": minus(by_length[n], by_length[32])
        for name, by_length in losses.items()
        for n in LONGER
    }
    effects = effects_of(differences)
    by_name = {
        name: effects[i * len(LONGER) : (i + 1) * len(LONGER)] for i, name in enumerate(BEYOND)
    }
    alibi = no_worse(by_name.pop("alibi"))
    worse = [name for name, own in by_name.items() if any(e.sign == "above" for e in own)]
    answer = alibi
    if alibi == HOLDS and len(worse) < len(by_name):
        answer = PARTLY if worse else FAILS
    columns = [Column("positional"), *(Column(f"at_{n}", f"{n}") for n in (32, *LONGER))]
    rows: list[list[Cell]] = [
        [name, *(interval([*seeds.values()]) for seeds in by_length.values())]
        for name, by_length in losses.items()
    ]
    reason = (
        f"That ALiBi gets no worse (within {TOLERANCE} nats/token): {alibi}. Worse at some length: "
        f"{', '.join(worse) or 'no other scheme'}."
    )
    table = Table("contexts", "Loss by tokens of context", columns, rows)
    return Finding(answer, reason, effects, [table])


def learned_sinusoidal(evidence: Evidence) -> Finding:
    effects = effects_of(pairs_of(evidence, POSITIONAL, [("learned", "sinusoidal")]))
    reason = f"No better: not lower by more than {TOLERANCE} nats/token."
    answer = verdict(effects, lambda effect: effect.not_below, {"below"})
    return Finding(answer, reason, effects)


def bigram(evidence: Evidence) -> Finding:
    losses = evidence.losses(BIGRAM)
    schemes = {design.config[POSITIONAL] for design in evidence.designs} - {"nope"}
    differences = {
        f"bigram minus {name}": minus(losses, evidence.losses({POSITIONAL: name}))
        for name in sorted(schemes)
    }
    effects = effects_of(differences, FAR)
    reason = f"Far: more than {FAR} nats/token, by a one-sided test."
    opposing = {"equivalent", "below", "slightly below"}
    answer = verdict(effects, lambda effect: effect.sign == "above", opposing)
    return Finding(answer, reason, effects, tolerance=FAR)


# ---- claims about blocks ----


def tying(evidence: Evidence) -> Finding:
    kinds, tokenizers = ("tied", "untied"), ("char", "bpe")
    designs = {(t, k): {TOKENIZER: t, EMBEDDING: k} for t in tokenizers for k in kinds}
    differences = {
        f"{t}: tied minus untied": minus(*(evidence.losses(designs[t, k]) for k in kinds))
        for t in tokenizers
    }
    effects = effects_of(differences)
    columns = [Column(heading) for heading in ("tokenizer", *kinds)]
    rows: list[list[Cell]] = [
        [t, *(evidence.number(designs[t, k], "parameters.total") for k in kinds)]
        for t in tokenizers
    ]
    reason = f"No cost: tied is better, or not worse by more than {TOLERANCE} nats/token."
    table = Table("parameters", "Parameters", columns, rows)
    return Finding(no_worse(effects), reason, effects, [table])


def norm(evidence: Evidence) -> Finding:
    """Pre minus post at each depth that both have, and a table of where each fails to train."""
    post = [design.config for design in evidence.designs if design.config[NORM] == "post"]
    depths, rates = (sorted({c[key] for c in post}) for key in (LAYERS, "optimizer.lr"))
    if evidence.setting == TUNED:
        differences = {
            f"{n} layers: pre minus post": minus(
                *(evidence.losses({NORM: placement, LAYERS: n}) for placement in ("pre", "post"))
            )
            for n in depths
        }
        effects = effects_of(differences)
        return Finding(better(effects), "Each with its own learning rate.", effects)
    long = {"trainer.max_steps": 5000, "optimizer.lr": 1e-3}

    def at(placement: str, rate: float, n: int) -> Seeds:
        own = {NORM: placement, LAYERS: n, "optimizer.lr": rate, "trainer.max_steps": 500}
        return evidence.losses(own)

    differences = {
        "5,000 steps: pre minus post": minus(
            *(evidence.losses(long | {NORM: placement}) for placement in ("pre", "post"))
        )
    }
    differences |= {
        f"{n} layers at {rate:g}: pre minus post": minus(at("pre", rate, n), at("post", rate, n))
        for n in depths
        for rate in rates
    }
    effects = effects_of(differences)
    columns = [Column("rate", "learning rate"), Column("norm")]
    columns += [Column(f"at_{n}", f"{n} layers") for n in depths]
    rows: list[list[Cell]] = [
        [f"{rate:g}", p, *(interval([*at(p, rate, n).values()]) for n in depths)]
        for rate in rates
        for p in ("pre", "post")
    ]
    reason = (
        "500 steps of each rate and depth, without warm-up, besides 5,000 at the posts' rate. "
        "A run that diverged counts with the loss of guessing."
    )
    table = Table("grid", "Loss by learning rate and depth", columns, rows)
    return Finding(better(effects), reason, effects, [table])


def heads(evidence: Evidence) -> Finding:
    designs = {
        n: {HEADS: None if n == 8 else n, "model.ffn.expansion": expansion}
        for n, expansion in EXPANSIONS.items()
    }
    losses = {n: evidence.losses(design) for n, design in designs.items()}
    differences = {f"{n} minus 8 heads": minus(losses[n], losses[8]) for n in (4, 2, 1)}
    effects = effects_of(differences)
    config = evidence.design(designs[8]).config
    head_size = int(config["model.n_embd"]) // int(config["model.n_head"])
    head_bytes = 2 * 4 * head_size * int(config[LAYERS])
    columns = [
        Column("heads", "key-value heads"),
        Column("parameters"),
        Column("bytes", "cache, bytes/token (fp32)"),
        Column("loss"),
    ]
    rows: list[list[Cell]] = [
        [
            f"{n}",
            evidence.number(designs[n], "parameters.total"),
            n * head_bytes,
            interval([*losses[n].values()]),
        ]
        for n in losses
    ]
    reason = f"Little: not worse by more than {TOLERANCE} nats/token."
    table = Table("cache", "Loss against cache, with equal parameters", columns, rows)
    return Finding(no_worse(effects), reason, effects, [table])


# ---- tokenizers ----


def tokenizer(evidence: Evidence) -> Finding:
    """Characters minus subwords at equal bytes read, FLOPs and steps."""
    rows = _tuned_tokens(evidence) if evidence.setting == TUNED else _tokens_by_curve(evidence)
    differences = {
        f"equal {what}: {one} minus {other}": minus(*bits)
        for (what, one, other), bits in rows.items()
    }
    effects = effects_of(differences, BITS_TOLERANCE)
    columns = [Column("equal"), Column("one"), Column("bits", "its bits/byte")]
    columns += [Column("other"), Column("other_bits", "its bits/byte")]
    cells: list[list[Cell]] = [
        [what, one, interval([*bits[0].values()]), other, interval([*bits[1].values()])]
        for (what, one, other), bits in rows.items()
    ]
    reason = "Losses per token of different tokenizers are not comparable; bits/byte are."
    table = Table("bits", "Loss", columns, cells)
    return Finding(
        better(effects), reason, effects, [table], tolerance=BITS_TOLERANCE, unit="bits/byte"
    )


# What is equal, and two tokenizers: their bits/byte.
TokenizerPairs = dict[tuple[str, str, str], tuple[Seeds, Seeds]]


def _tuned_tokens(evidence: Evidence) -> TokenizerPairs:
    """Return the bits/byte of pairs, from a comparison for each amount that is equal."""
    rows: TokenizerPairs = {}
    for name in evidence.names:
        own = Evidence(evidence.results, TUNED, [name])
        char, bpe = (own.losses({TOKENIZER: t}, bits=True) for t in ("char", "bpe"))
        rows[name.rpartition("_")[2], "char", "bpe"] = char, bpe
    return rows


def _tokens_by_curve(evidence: Evidence) -> TokenizerPairs:
    """Return the bits/byte of pairs at equal amounts, interpolated between evaluations.

    The learning rate is constant, so that a shorter run is the beginning of a longer one. The
    amount is the largest that both reached. A pair is left out where one of them was not evaluated
    as early.
    """
    designs: dict[str, dict[str, Any]] = {t: {TOKENIZER: t} for t in TOKENIZERS}
    designs[LONG] = {TOKENIZER: "char", "model.block_size": 96}
    runs = {name: evidence.design(changes).by_seed for name, changes in designs.items()}
    rows: TokenizerPairs = {}
    for what, amount in AMOUNTS.items():
        for one, other in TOKENIZER_PAIRS:
            each = {t: amount(next(iter(runs[t].values()))[0]) for t in (one, other)}
            steps = {t: next(iter(runs[t].values()))[0].result["steps"] for t in (one, other)}
            most = min(each[t] * steps[t] for t in (one, other))
            bits = [
                {seed: bits_at(own[0], most / each[t]) for seed, own in runs[t].items()}
                for t in (one, other)
            ]
            known = [{s: x for s, x in seeds.items() if x is not None} for seeds in bits]
            if all(known):
                rows[what, one, other] = known[0], known[1]
    return rows


def _tokens_per_step(run: Run) -> float:
    return run.config["trainer.batch_size"] * run.config["model.block_size"]


# Amount per step of a run, by its name.
AMOUNTS: dict[str, Callable[[Run], float]] = {
    "bytes": lambda run: (
        _tokens_per_step(run)
        * run.manifest["characters"]["train"]
        / run.manifest["tokens"]["train"]
    ),
    "FLOPs": lambda run: _tokens_per_step(run) * run.result["flops_per_token"],
    "steps": lambda run: 1.0,
}


def bits_at(run: Run, step: float) -> float | None:
    """Return the validation loss in bits/byte at a step, between the nearest evaluations.

    None before the first evaluation and after the last.
    """
    logged = run.logged("val_bits_per_byte")
    steps = sorted(logged)
    if not steps[0] <= step <= steps[-1]:
        return None
    return float(np.interp(step, steps, [logged[s] for s in steps]))


# ---- speed and search ----


def ratio_of(seconds: Mapping[str, Sequence[float]], one: str, other: str) -> Interval:
    """Return the time of one over that of another, of repeats that were measured side by side."""
    pairs = zip(seconds[one], seconds[other], strict=True)
    return interval([math.log(a / b) for a, b in pairs]).exp()


def is_faster(ratio: Interval) -> str:
    """Return yes, no or undecided."""
    return "yes" if ratio.high < 1 else "no" if ratio.low > 1 else UNDECIDED


def cache(evidence: Evidence) -> Finding:
    """Decoding with fewer key-value heads over 8: time at each context, from measured.py."""
    (folder,) = evidence.folders
    measured = read_json(folder / MEASURED)
    rows: list[list[Cell]] = []
    for row in measured["rows"]:
        for heads in ("4", "2", "1"):
            ratio = ratio_of(row["seconds"], heads, "8")
            megabytes = row["cache_bytes"][heads] / 1e6
            rows.append([f"{row['context']:,}", heads, ratio, is_faster(ratio), megabytes])
    n_faster = sum(row[3] == "yes" for row in rows)
    longest = max(row["context"] for row in measured["rows"])
    at_longest = [row[3] for row in rows if row[0] == f"{longest:,}"]
    columns = [
        Column("context", "tokens of context"),
        Column("heads", "key-value heads"),
        Column("ratio", "time, over 8 heads", digits=2),
        Column("faster"),
        Column("cache", "cache, MB", digits=0),
    ]
    reason = (
        f"Faster in {n_faster} of {len(rows)} cases. {measured['parameters']:,} parameters with 8 "
        f"heads, {measured['batch']} texts at once on {measured['device']}; ± over "
        f"{measured['repeats']} repeats."
    )
    is_true = all(answer == "yes" for answer in at_longest)
    answer = HOLDS if is_true else PARTLY if n_faster else FAILS
    table = Table("cache", "Time per decoded token", columns, rows)
    return Finding(answer, reason, [], [table])


def backend(evidence: Evidence) -> Finding:
    """SDPA over eager: time at each length and precision, from measured.py."""
    (folder,) = evidence.folders
    measured = read_json(folder / MEASURED)
    rows: list[list[Cell]] = []
    ratios: dict[str, list[Interval]] = {}
    less_memory = True
    for row in measured["rows"]:
        ratio = ratio_of(row["seconds"], "sdpa", "eager")
        ratios.setdefault(row["precision"], []).append(ratio)
        eager, sdpa = (row["saved_bytes"][name] / 1e6 for name in ("eager", "sdpa"))
        less_memory &= sdpa < eager
        length = f"{row['length']:,}"
        rows.append([row["precision"], length, ratio, is_faster(ratio), eager, sdpa])
    every = [ratio for by_length in ratios.values() for ratio in by_length]
    falls = all(a.mean > b.mean for own in ratios.values() for a, b in pairwise(own))
    n_faster = sum(ratio.high < 1 for ratio in every)
    columns = [
        Column("precision"),
        Column("length"),
        Column("ratio", "time, sdpa over eager", digits=2),
        Column("faster"),
        Column("eager", "eager saves, MB", digits=0),
        Column("sdpa", "sdpa saves, MB", digits=0),
    ]
    reason = (
        f"Faster at {n_faster} of {len(every)} lengths and precisions; the ratio "
        f"{'falls' if falls else 'does not always fall'} with the length; "
        f"{'less' if less_memory else 'not always less'} memory. {measured['tokens']:,} tokens on "
        f"{measured['device']}; ± over {measured['repeats']} repeats."
    )
    is_true = n_faster == len(every) and falls and less_memory
    answer = HOLDS if is_true else PARTLY if n_faster else FAILS
    return Finding(answer, reason, [], [Table("backend", "SDPA against eager", columns, rows)])


def early_stopping(evidence: Evidence) -> Finding:
    """Best losses of searches with ASHA minus those of the same searches in full."""
    searches: dict[str, dict[int, dict[str, Any]]] = {"asha": {}, "none": {}}
    for folder in evidence.folders:
        scheduler, _, seed = folder.name.rpartition("_")
        searches[scheduler][int(seed)] = read_json(folder / SEARCH)
    early, full = (
        {seed: search["best"]["value"] for seed, search in searches[name].items()}
        for name in ("asha", "none")
    )
    savings = [search["saving"] for search in searches["asha"].values()]
    share = interval([saving["steps_trained"] / saving["steps_in_full"] for saving in savings])
    n_same, n = sum(early[seed] == full[seed] for seed in full), len(full)
    reason = f"ASHA finds the config of the full search in {n_same} of {n} searches"
    saved = f"with {share.mean:.2f} ± {share.half or 0:.2f} of the steps."
    if n_same == n:  # no differences to test: yes or no in each search
        missed = 1 - ALPHA ** (1 / n)
        reason += f" (by a one-sided binomial bound it misses it in at most {missed:.0%}), {saved}"
        found = HOLDS if missed < MISSED else UNDECIDED
        return Finding(found if share.high < 1 else FAILS, reason)
    effects = effects_of({"asha minus full": minus(early, full)})
    return Finding(no_worse(effects) if share.high < 1 else FAILS, f"{reason}, {saved}", effects)


CLAIMS = {
    "inside_blocks": Claim(
        "Positions that act inside every block beat positions added to the input alone.",
        "Seven schemes that act in every block against learned and sinusoidal positions.",
        {POSTS: ["posts/positional"], TUNED: ["tuned/positional"]},
        inside_blocks,
    ),
    "alike": Claim(
        "Relative bias, ALiBi and RoPE reach the same validation loss.",
        "All three pairs, for equivalence.",
        {POSTS: ["posts/positional"], TUNED: ["tuned/positional"]},
        alike,
    ),
    "parameters": Claim(
        "ALiBi needs the fewest parameters, RoPE comes next.",
        "The parameters of each scheme, all of which are trained. The posts compare with learned "
        "tables; ALiBi, RoPE and sinusoids have none. Training does not change the numbers.",
        {POSTS: ["posts/positional"]},
        parameters,
    ),
    "beyond": Claim(
        "ALiBi gets no worse beyond the training length, where other schemes do.",
        "The same 4,096 tokens at every length, each predicted from exactly so many tokens; the "
        "training length is 32. Schemes with a table of positions are undefined beyond it.",
        {POSTS: ["posts/positional", "posts/kerple"]},
        beyond,
    ),
    "learned_sinusoidal": Claim(
        "Learned positions are no better than sinusoidal ones.",
        "Both at the input.",
        {POSTS: ["posts/positional"], TUNED: ["tuned/positional"]},
        learned_sinusoidal,
    ),
    "bigram": Claim(
        "A bigram model is far behind every model with attention.",
        "A table of next tokens: in (a) against the models with each positional scheme, in (b) "
        "against the one with learned positions.",
        {POSTS: ["posts/positional", "posts/bigram"], TUNED: ["tuned/bigram"]},
        bigram,
    ),
    "tying": Claim(
        "Tying the head to the embedding saves parameters at no cost in loss.",
        "With characters and with 1,024 byte pairs.",
        {POSTS: ["posts/positional", "posts/untied", "posts/bpe"], TUNED: ["tuned/tying"]},
        tying,
    ),
    "norm": Claim(
        "Pre-norm trains better than post-norm.",
        "In (a) 4, 8 and 16 layers at several learning rates; in (b) 4 and 16 layers, each at the "
        "rate chosen for it, after 500 steps: which trains faster, not where both end.",
        {POSTS: ["posts/positional", "posts/post_norm", "posts/norm_grid"], TUNED: ["tuned/norm"]},
        norm,
    ),
    "heads": Claim(
        "Fewer key-value heads cost little loss and save cache.",
        "The feed-forward layer is widened by the weights that fewer heads save.",
        {
            POSTS: ["posts/positional", "posts/heads_4", "posts/heads_2", "posts/heads_1"],
            TUNED: ["tuned/heads"],
        },
        heads,
    ),
    "cache": Claim(
        "With a large cache, fewer key-value heads decode faster.",
        "A model of 25M parameters with random weights, 8 layers of width 512, at two lengths of "
        "context; parameters are equal as above. Its loss is not measured.",
        {POSTS: [CACHE]},
        cache,
    ),
    "tokenizer": Claim(
        "Larger vocabularies do not help a small model on a small text: characters win in "
        "bits/byte.",
        "Contexts of 32 tokens each, which are more text for larger vocabularies; in (a) also "
        "characters with 96 tokens, about as much text as 32 tokens of bpe. A step with the "
        "vocabulary of GPT-2 takes 40 times as long, so it has fewer steps in (a), where it is "
        "compared at amounts for which both have evaluations, and is not in (b).",
        {
            POSTS: ["posts/positional", "posts/bpe", "posts/gpt2", "posts/long_char"],
            TUNED: ["tuned/tokenizer_bytes", "tuned/tokenizer_flops", "tuned/tokenizer_steps"],
        },
        tokenizer,
    ),
    "backend": Claim(
        "Fused attention (SDPA) is faster than writing the scores out, and the more so the longer "
        "the text; it also needs less memory.",
        "One layer, forward and backward, at each length and precision. Training does not matter.",
        {POSTS: [BACKENDS]},
        backend,
    ),
    "early_stopping": Claim(
        "Early stopping by ASHA finds as good a config as training every trial in full, for less.",
        "Five pairs of random searches with the same eight configs: learning rates of rotary "
        "positions and ALiBi.",
        {TUNED: [f"searches/{scheduler}_{n}" for n in SEARCHES for scheduler in ("none", "asha")]},
        early_stopping,
    ),
}
