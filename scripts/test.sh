#!/usr/bin/env bash
# Installs into a fresh environment and runs the tests and doctests. VENV says where;
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable '.[dev]'
# Neighbors share what they compile, so each process takes a stretch of the tests.
exec "$venv/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist worksteal "$@"
