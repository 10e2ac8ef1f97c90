"""Train attentions on text with repeated phrases, and test retrieval of a key far back.

    python studies/planted_key/planted_key.py

The text: random letters, half of them in phrases that repeat an earlier stretch, so that a model
that finds the earlier occurrence can predict the phrase. Every attention is trained on it (RoPE,
several seeds). A question is a text without repetitions that has a key near its start and ends with
the first half of the key; the answer is the next letter of the key. Chance is 1 in 26.

Run it again to train what is missing.
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

from minigpt.report.designs import group
from minigpt.report.runs import find_runs
from minigpt.report.statistics import interval
from minigpt.report.tables import Cell, Column, Table, to_markdown
from minigpt.run.load import TrainedRun

PASSAGE = 4096  # letters within which phrases repeat
BACK = 56  # largest distance to the start of the repeated stretch
KEY = 16
PLANTED_WITHIN = 32  # the key ends within this number of letters from the start
QUESTIONS_AT_ONCE = 8192  # letters
DESIGN = [
    *("data.train_fraction=0.99", "model.block_size=64", "model.n_layer=2", "model.n_embd=64"),
    *("model.n_head=2", "model.qk_norm=false", "model.residual_init=scaled"),
    *("trainer.batch_size=64", "optimizer.lr=2e-3", "optimizer.weight_decay=0.01"),
    *("schedule.warmup_steps=100", "trainer.sample_prompt=a", "logger=none"),
]


def main() -> None:
    """Train missing runs, test them, print the table and optionally write it."""
    parser = argparse.ArgumentParser(description="Retrieval of a planted key.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/planted_key"))
    parser.add_argument("--attentions", default="full,sliding_window,performer,landmark")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--letters", type=int, default=2_000_000, help="in the training text")
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096", help="of questions")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    options = parser.parse_intermixed_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    text = options.folder / "text.txt"
    if not text.exists():
        text.write_text(passages(options.letters, random.Random(0)), encoding="utf-8")
    sweep = [
        *("data=text", f"data.path={text}", *DESIGN, f"trainer.max_steps={options.steps}"),
        *(f"attention={options.attentions}", f"seed={options.seeds}"),
        *(f"hydra.sweep.dir={options.folder}", *options.overrides),
    ]
    code = subprocess.run([sys.executable, "-m", "minigpt.cli", "train", "-m", *sweep]).returncode
    if code:
        sys.exit(code)
    lengths = [int(length) for length in options.lengths.split(",")]
    page = to_markdown(ask_all(options.folder, lengths, options.questions))
    print(page)
    if options.out is not None:
        options.out.write_text(page[1:], encoding="utf-8")  # the heading of a page


def ask_all(folder: Path, lengths: list[int], n_questions: int) -> Table:
    """Return the accuracy of each design at each question length."""
    rows: list[list[Cell]] = []
    designs = group(find_runs([str(folder)]).runs, [])
    for design in designs:
        answers = [ask(run.path, lengths, n_questions) for run in design.runs]
        shares = [interval([shares[length] for shares in answers]) for length in lengths]
        rows.append([str(design.config["model.attention.name"]), *shares])
    columns = [Column("attention", "attention")]
    columns += [Column(f"at_{length}", f"{length}", digits=2) for length in lengths]
    config = designs[0].config
    note = (
        f"{config['model.n_layer']} layers, {config['model.positional.name']}, "
        f"{config['trainer.max_steps']:,} steps at block {config['model.block_size']}. Share of "
        f"right answers by letters in the question: mean over seeds ± half of the 95 % t-interval; "
        f"chance is {1 / len(string.ascii_lowercase):.2f}."
    )
    return Table("planted_key", "A planted key", columns, rows, note)


def ask(run: Path, lengths: list[int], n_questions: int) -> dict[int, float]:
    """Return the accuracy of a run by length, and save it in answers.json."""
    trained = TrainedRun.load(str(run))
    file, weights = run / "answers.json", trained.weights_sha256
    saved = json.loads(file.read_text()) if file.exists() else {}
    shares = saved["shares"] if saved.get("weights_sha256") == weights else {}
    for length in lengths:
        if str(length) not in shares:
            shares[str(length)] = accuracy(trained, length, n_questions)
            file.write_text(json.dumps({"weights_sha256": weights, "shares": shares}))
            print(f"{run} at {length}: {shares[str(length)]:.3f}", flush=True)
    return {length: shares[str(length)] for length in lengths}


@torch.inference_mode()
def accuracy(trained: TrainedRun, length: int, n_questions: int) -> float:
    """Return the share of questions whose most likely next letter is right."""
    rng, right = random.Random(length), 0
    batch_size = max(1, QUESTIONS_AT_ONCE // length)
    for first in range(0, n_questions, batch_size):
        asked = [question(length, rng) for _ in range(min(batch_size, n_questions - first))]
        tokens = torch.tensor([trained.tokenizer.encode(text) for text, _ in asked])
        answers = trained.model(tokens.to(trained.runtime.device))[:, -1].argmax(-1).tolist()
        for answer, (_, letter) in zip(answers, asked, strict=True):
            right += trained.tokenizer.decode([answer]) == letter
    return right / n_questions


# ---- text ----


def question(length: int, rng: random.Random) -> tuple[str, str]:
    """Return `length` letters that end with the first half of a key, and its next letter."""
    key, before = letters(KEY, rng), rng.randrange(PLANTED_WITHIN - KEY)
    start = letters(before, rng) + key
    asked = key[: KEY // 2]
    return start + letters(length - len(start) - len(asked), rng) + asked, key[KEY // 2]


def passages(n: int, rng: random.Random) -> str:
    """Return n letters or more."""
    return "".join(passage(PASSAGE, rng) for _ in range(-(-n // PASSAGE)))


def passage(n: int, rng: random.Random) -> str:
    """Return n letters, about half of them repeated."""
    text = letters(BACK, rng)
    while len(text) < n:
        size = rng.randint(8, 16)
        start = len(text) - rng.randint(size, BACK)
        text += rng.choice([letters(size, rng), text[start : start + size]])
    return text[:n]


def letters(n: int, rng: random.Random) -> str:
    """Return n random letters."""
    return "".join(rng.choices(string.ascii_lowercase, k=n))


if __name__ == "__main__":
    main()
