#!/usr/bin/env bash
# Trains every choice of a config group (positional, attention, ffn, norm) at block 32 with several
# seeds, RoPE where the group is another, and evaluates each at other lengths.
#   scripts/train_group.sh positional
#   SEEDS="1 2 3 4 5" JOBS=1 STEPS=200 DIR=runs/quick scripts/train_group.sh attention
# ARGS are more overrides for all runs. One thread a run, JOBS runs at a time. Called again, it goes on with what is missing.
# Then: python scripts/positional_table.py runs/positional docs/positional.md
#   or: python scripts/attention_table.py runs/attention runs/planted_key docs/attention.md
set -euo pipefail
export GROUP=${1:?which config group: positional, attention, ffn or norm}
export SEEDS=${SEEDS:-1 2 3} STEPS=${STEPS:-2000} DIR=${DIR:-runs/$GROUP} JOBS=${JOBS:-2}
export ARGS=${ARGS:-} LENGTHS=${LENGTHS:-32,64,128,256,512} OMP_NUM_THREADS=1
choices=$(cd "$(dirname "$0")/../configs/$GROUP" && printf '%s ' *.yaml)
CHOICES=${CHOICES:-${choices//.yaml/}}

# shellcheck disable=SC2086  # ARGS and design are words
train() {  # choice, seed, run
  local design="model=$1"
  if [ "$GROUP" != positional ]; then design="model=rope $GROUP=$1"; fi
  if [ -e "$3/config.yaml" ]; then
    minigpt train resume="$3"
  else
    minigpt train experiment=seed_blog $design seed="$2" logger=none trainer.threads=1 \
      trainer.max_steps="$STEPS" hydra.run.dir="$3" $ARGS
  fi
}
one() {
  local run="$DIR/$1/seed_$2"
  mkdir -p "$run"
  if ! grep -qs '"status": "finished"' "$run/result.json"; then
    echo "training $run"
    train "$1" "$2" "$run" > "$run/output.txt" 2>&1 || return 1
  fi
  if ! grep -qs '"lengths"' "$run/eval.json"; then
    minigpt eval "$run" --checkpoint last --lengths "$LENGTHS" --by-position >> "$run/output.txt" 2>&1
  fi
}
export -f train one

for seed in $SEEDS; do
  for choice in $CHOICES; do printf '%s\0%s\0' "$choice" "$seed"; done
done | xargs -0 -n 2 -P "$JOBS" bash -c 'one "$0" "$1" || { echo "failed: $DIR/$0/seed_$1/output.txt" >&2; exit 1; }'
