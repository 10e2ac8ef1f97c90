"""Whether a model finds a planted key far back: training, evaluation and the table.

    python scripts/planted_key.py runs/planted_key [--out docs/planted_key.md]

The text: letters at random, half of them in phrases that repeat an earlier stretch, so that whoever
finds where a phrase stood before knows how it goes on. Each attention is trained on it (RoPE,
several seeds), and then asked: a text of so many letters without repetitions, in which a key stands
near the start, ends with the key's first half; is the next letter the key's? Chance is 1 of 26.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import torch
from tables import interval, mean, table

from minigpt.api import load_run
from minigpt.config.compose import load_config
from minigpt.run.load import TrainedRun

PASSAGE = 4096  # letters within which phrases repeat
BACK = 56  # letters back, at most, that a phrase is taken from
KEY = 16
PLANTED_WITHIN = 32  # letters from the start


def main() -> None:
    """Train what is missing, ask, print the table and write it where asked to."""
    parser = argparse.ArgumentParser(description="Retrieval of a planted key.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attentions", default="full,sliding_window,performer,landmark")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--letters", type=int, default=2_000_000)
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    text = options.folder / "text.txt"
    if not text.exists():
        text.write_text(passages(options.letters, random.Random(0)), encoding="utf-8")
    lengths = [int(length) for length in options.lengths.split(",")]
    for seed in options.seeds.split(","):
        for attention in options.attentions.split(","):
            run = options.folder / attention / f"seed_{seed}"
            if not finished(run):
                train(run, text, attention, seed, options.steps, options.overrides)
            ask(run, lengths, options.questions)
    lines = page(options.folder, options.attentions.split(","), lengths)
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ask(run: Path, lengths: list[int], n_questions: int) -> None:
    """Write the share of right answers at each length to answers.json."""
    file = run / "answers.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    trained = load_run(str(run), None, "auto")
    for length in lengths:
        if str(length) not in found:
            found[str(length)] = accuracy(trained, length, n_questions)
            print(f"{run} at {length}: {found[str(length)]:.3f}", flush=True)
            file.write_text(json.dumps(found))


def page(folder: Path, attentions: list[str], lengths: list[int]) -> list[str]:
    """The table as Markdown."""
    runs = {a: sorted((folder / a).glob("seed_*/answers.json")) for a in attentions}
    rows = []
    for attention, files in runs.items():
        found = [json.loads(file.read_text()) for file in files]
        cells = []
        for length in lengths:
            right = [of_run[str(length)] for of_run in found]
            spread = f" ± {interval(right):.2f}" if len(right) > 1 else ""
            cells.append(f"{mean(right):.2f}{spread}")
        rows.append([f"`{attention}`", *cells])
    config = load_config(runs[attentions[0]][0].with_name("config.yaml"))
    model, seeds = config.model, "/".join(sorted({str(len(files)) for files in runs.values()}))
    return [
        "# A planted key",
        "",
        f"Written by `scripts/planted_key.py`, which says what was asked. {model.n_layer} layers "
        f"with positional={model.positional.name}, trained for",
        f"{config.trainer.max_steps:,} steps at block {model.block_size}; share of right answers "
        f"by letters of text, mean over {seeds} seeds ± half a",
        f"95 % t-interval; chance is {1 / len(string.ascii_lowercase):.2f}.",
        "",
        *table(["attention", *map(str, lengths)], rows),
    ]


def passages(n: int, rng: random.Random) -> str:
    """At least n characters."""
    return "".join(passage(PASSAGE, rng) for _ in range(-(-n // PASSAGE)))


def letters(n: int, rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=n))


def passage(n: int, rng: random.Random) -> str:
    """n letters, about half of them repeated."""
    text = letters(BACK, rng)
    while len(text) < n:
        size = rng.randint(8, 16)
        start = len(text) - rng.randint(size, BACK)
        text += rng.choice([letters(size, rng), text[start : start + size]])
    return text[:n]


def finished(run: Path) -> bool:
    result = run / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] == "finished"


def train(run: Path, text: Path, attention: str, seed: str, steps: int, more: list[str]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    overrides = [
        *("data=text", f"data.path={text}", "data.train_fraction=0.99", f"attention={attention}"),
        *("model.block_size=64", "model.n_layer=2", "model.n_embd=64", "model.n_head=2"),
        *("model.qk_norm=false", "model.residual_init=scaled", "trainer.batch_size=64"),
        *("optimizer.lr=2e-3", "optimizer.weight_decay=0.01"),
        *(f"seed={seed}", f"trainer.max_steps={steps}", "logger=none", f"hydra.run.dir={run}"),
        "trainer.sample_prompt=a",
        *more,
    ]
    if (run / "config.yaml").exists():
        overrides = [f"resume={run}"]
    (run / "answers.json").unlink(missing_ok=True)  # of what it was before
    with (run / "output.txt").open("a") as output:
        program = [sys.executable, "-m", "minigpt.cli", "train", *overrides]
        subprocess.run(program, check=True, stdout=output, stderr=subprocess.STDOUT)


@torch.inference_mode()
def accuracy(trained: TrainedRun, length: int, n_questions: int) -> float:
    """Share of questions whose likeliest next character is right."""
    rng, right = random.Random(length), 0
    at_once = max(1, 8192 // length)
    for first in range(0, n_questions, at_once):
        asked = [question(length, rng) for _ in range(min(at_once, n_questions - first))]
        tokens = torch.tensor([trained.tokenizer.encode(text) for text, _ in asked])
        answers = trained.model(tokens.to(trained.runtime.device))[:, -1].argmax(-1).tolist()
        for answer, (_, letter) in zip(answers, asked, strict=True):
            right += trained.tokenizer.decode([answer]) == letter
    return right / n_questions


def question(length: int, rng: random.Random) -> tuple[str, str]:
    """A text of `length` letters that ends with the first half of a key, and its next letter."""
    key, before = letters(KEY, rng), rng.randrange(PLANTED_WITHIN - KEY)
    start = letters(before, rng) + key
    asked = key[: KEY // 2]
    return start + letters(length - len(start) - len(asked), rng) + asked, key[KEY // 2]


if __name__ == "__main__":
    main()
