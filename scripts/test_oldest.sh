#!/usr/bin/env bash
# The core of the suite with the oldest versions that pyproject.toml allows, in an
# environment of their own. VENV says where; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv-oldest}"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
mapfile -t oldest < <(python3 - <<'PY'
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *extras["train"], *extras["dev"]]:
  if found := re.match(r"([\w.-]+)>=([\w.]+)", line):
    # Tools are no part of what is promised.
    if found[1] not in ("pyright", "ruff"):
      print(f"{found[1]}=={found[2]}")
      if found[1] == "jax":
        print(f"jaxlib=={found[2]}")
PY
)
"$venv/bin/pip" install --quiet --disable-pip-version-check "${oldest[@]}"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --editable .
paths=("$@")
[ ${#paths[@]} -gt 0 ] || paths=(
  tests/core tests/distributions tests/test_bad_input.py tests/transforms/test_sparsify.py
  tests/training/test_checkpoint.py tests/training/test_config.py
)
# Old packages warn of each other; that is not what is asked here.
exec "$venv/bin/python" -m pytest -q -W default -n "${TEST_PROCESSES:-2}" "${paths[@]}"
