"""What is trained for the claims: sweeps in the posts' setting, and comparisons of tuned designs.

A training is the arguments of one minigpt command. Its name is the folder of its runs.
measured.py measures BACKENDS and CACHE.
"""

from __future__ import annotations

SEEDS = "seed=1,2,3,4,5"
SCHEMES = "learned,sinusoidal,block_input,integrated,relative,relative_bias,t5,rope,alibi"
SEARCH_SPACE = ["positional=rope,alibi", "optimizer.lr=tag(log,interval(3e-4,3e-2))"]
SEARCHES = (1, 2, 3, 4, 5)
BACKENDS, CACHE = "measured/backends", "measured/cache"
# Expansion of the feed-forward layer by key-value heads of 8: it has the weights that they save.
EXPANSIONS = {8: 4.0, 4: 4.5, 2: 4.75, 1: 4.875}


def sweep(*overrides: str) -> list[str]:
    """Return a sweep over seeds in the posts' setting."""
    return ["train", "-m", "experiment=claims/posts", *overrides, SEEDS]


def compare(*overrides: str, experiment: str = "claims/tuned", steps: int = 1000) -> list[str]:
    """Return a comparison of designs, each with the learning rate that is best for it."""
    return [
        *("compare", f"experiment={experiment}", *overrides, f"trainer.max_steps={steps}"),
        *("--budget", "4", "--search-seeds", "1"),
    ]


def key_value_heads(n: int) -> list[str]:
    """Return n of 8 key-value heads, with a feed-forward layer wider by the weights saved."""
    return [f"model.n_kv_head={n}", f"model.ffn.expansion={EXPANSIONS[n]}"]


def search(scheduler: str, seed: int) -> list[str]:
    """Return a search with or without early stopping; trials are compared after the warm-up."""
    options = ["trainer.max_steps=500", "trainer.eval_every=50", "schedule.warmup_steps=25"]
    how = ["--search", "random", "--trials", "8", "--seed", f"{seed}", "--scheduler", scheduler]
    return ["tune", *SEARCH_SPACE, "experiment=claims/tuned", *options, *how]


TRAININGS = {
    "posts/positional": sweep(f"positional={SCHEMES}"),
    "posts/kerple": sweep("positional=kerple"),
    "posts/bigram": sweep("model=bigram", "model.n_layer=0"),
    "posts/untied": sweep("embedding=untied"),
    "posts/bpe": sweep("tokenizer=bpe", "embedding=tied,untied"),
    "posts/gpt2": sweep("tokenizer=gpt2", "trainer.max_steps=160", "trainer.eval_every=40"),
    "posts/long_char": sweep("model.block_size=96", "trainer.batch_size=22"),
    "posts/heads_4": sweep(*key_value_heads(4)),
    "posts/heads_2": sweep(*key_value_heads(2)),
    "posts/heads_1": sweep(*key_value_heads(1)),
    "posts/post_norm": sweep("norm=post"),
    "posts/norm_grid": ["train", "-m", "experiment=claims/norm"],
    "tuned/positional": compare(f"positional={SCHEMES}"),
    "tuned/bigram": compare(experiment="claims/tuned,claims/bigram"),
    "tuned/tying": compare("tokenizer=char,bpe", "embedding=tied,untied", steps=500),
    "tuned/heads": compare(experiment="claims/tuned,claims/heads_4,claims/heads_2,claims/heads_1"),
    "tuned/norm": compare("norm=pre,post", "model.n_layer=4,16", steps=500),
    "tuned/tokenizer_bytes": compare("tokenizer=char,bpe", "sweep.match=bytes", steps=500),
    "tuned/tokenizer_flops": compare("tokenizer=char,bpe", "sweep.match=flops", steps=500),
    "tuned/tokenizer_steps": compare("tokenizer=char,bpe", steps=500),
    **{
        f"searches/{scheduler}_{seed}": search(scheduler, seed)
        for seed in SEARCHES
        for scheduler in ("none", "asha")
    },
}
