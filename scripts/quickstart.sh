#!/usr/bin/env bash
# Installs into a fresh environment and trains on the digits that come with scikit-learn:
# no download but packages. VENV and WORKDIR say where.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable '.[train]'
exec "$venv/bin/python" scripts/train.py \
  --config=configs/digits.py --workdir="${WORKDIR:-runs/digits}" "$@"
