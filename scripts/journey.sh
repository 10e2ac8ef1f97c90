#!/bin/sh
# Train all steps of docs/journey, compare them in runs/journey/report.html, and write their numbers
# and pictures into the pages. Stopped, it continues when called again. Arguments are overrides for
# all runs, which need other folders: scripts/journey.sh --runs DIR --out DIR trainer.max_steps=4
set -eu
cd "$(dirname "$0")/.."
python -m studies.journey.journey --train all "$@"
