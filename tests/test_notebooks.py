"""Each notebook has its twin, without outputs; scripts/site/notebooks.py runs them."""

import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.py"))


def cells(text):
  """The cells of a py:percent file: kind, and lines without comment marks."""
  _, *parts = text.split("\n# %%")
  for part in parts:
    head, *lines = part.split("\n")
    if "[markdown]" in head:
      lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
      yield "markdown", "\n".join(lines).strip()
    else:
      yield "code", "\n".join(lines).strip()


def test_there_are_notebooks():
  assert [int(path.name[0]) for path in PATHS] == list(range(1, 10))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_twins_hold_the_same_cells_and_no_outputs(path):
  twin = json.loads(path.with_suffix(".ipynb").read_text())
  found = [(c["cell_type"], "".join(c["source"]).strip()) for c in twin["cells"]]
  assert found == list(cells(path.read_text()))
  for cell in twin["cells"]:
    assert not cell.get("outputs")
    assert cell.get("execution_count") is None
