"""Each call of bad_input.txt is refused by an error that names what is wrong.

The table gives, for each expression, the type of the error and the argument that its
message names.
"""

import collections
import pathlib
import re
import tempfile
import traceback
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax import (
  analysis,
  initializers,
  lottery,
  models,
  post_training,
  second_order,
  supermasks,
  theory,
  training,
)
from sparsejax.experiments import results
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _metrics as metrics
from sparsejax.training import _run as run
from sparsejax.training import config, data
from sparsejax.training.data import _augment as augment

OURS = pathlib.Path(sj.__file__).parent


# The rule that is broken, between the argument's name and the value.
RULE = re.compile(r" (must|takes) | has no field ")
# How a message gives the value. The last ones have none: they compare two trees or two
# shapes, tell what is missing, or pass on what a model says.
VALUE = re.compile(
  r"\bgot\b| has no field | has shape | structure|^input_axes must say |"
  r" in every group |Value after "
)


class Row(NamedTuple):
  """A call that is refused."""

  expression: str
  error: str  # the type's name
  argument: str


def table() -> list[Row]:
  """Reads the rows."""
  text = pathlib.Path(__file__).with_name("bad_input.txt").read_text()
  lines = [line for line in text.splitlines() if not line.startswith("#")]
  rows = []
  for expression, told in zip(lines[::2], lines[1::2], strict=True):
    if not re.fullmatch(r"  \w+ \w+", told):
      raise ValueError(f"want '  Error argument' under {expression}, got {told!r}")
    rows.append(Row(expression, *told.split()))
  return rows


def names(folder: str) -> dict[str, Any]:
  """What the expressions are made of; files go into a folder."""
  params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4,))}
  sgd = optax.sgd(0.1)
  state = sj.rigl(sgd, 0.5).init(params)
  _write_files(folder)
  return {
    **{"P": params, "SGD": sgd, "S": state, "M": sj.masks(state)},
    **{"KEY": jax.random.key(0), "x44": params["a"], "im": jnp.ones((1, 8, 8, 1))},
    **{"FOLDER": folder, "jax": jax, "jnp": jnp, "np": np, "pathlib": pathlib},
    **{
      "sj": sj,
      "optax": optax,
      "models": models,
      "training": training,
      "lottery": lottery,
    },
    **{"post_training": post_training, "product": lambda p, x: x @ p["a"]},
    **{"second_order": second_order, "supermasks": supermasks, "theory": theory},
    **{"initializers": initializers, "analysis": analysis, "config": config},
    **{"results": results, "data": data, "checkpoint": checkpoint, "run": run},
    **{"augment": augment, "metrics": metrics},
  }


def complaint(row: Row, known: dict[str, Any]) -> str:
  """Returns what is wrong with how a row is refused; nothing if it is as it should."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      return f"accepted: {eval(row.expression, known)!r}"
  except Exception as e:
    if row.error not in [cls.__name__ for cls in type(e).__mro__]:
      return f"want {row.error}, got {e!r}"
    source = traceback.extract_tb(e.__traceback__)[-1].filename
    if not pathlib.Path(source).is_relative_to(OURS):
      return f"not ours: {e!r}"
    message = str(e)
  rule = RULE.search(message)
  if rule is None:
    return f"no rule: {message}"
  if not re.search(rf"\b{row.argument}\b", message[: rule.end()]):
    return f"{row.argument} is not named: {message}"
  if not VALUE.search(message):
    return f"no value: {message}"
  return ""


def _write_files(folder: str) -> None:
  """Files that `load_masks` must not take for its own."""
  path = pathlib.Path(folder)
  bits, shape = np.zeros((4, 1), np.uint8), np.array([4, 4])
  for name, arrays in {
    "other": {"a": np.ones(3)},
    "obj": {"mask:a": np.array([{}], object), "shape:a": np.array([1])},
    "noshape": {"mask:a": bits},
    "badbits": {"mask:a": np.zeros((4, 3), np.uint8), "shape:a": shape},
    "floatbits": {"mask:a": bits.astype(np.float32), "shape:a": shape},
    "neg": {"mask:a": bits, "shape:a": np.array([-4, 4])},
    "fshape": {"mask:a": bits, "shape:a": shape.astype(float)},
  }.items():
    np.savez(path / f"{name}.npz", **arrays)
  sj.save_masks(path / "ok.npz", {"a": jnp.ones((4, 4), bool)})
  whole = (path / "ok.npz").read_bytes()
  (path / "trunc.npz").write_bytes(whole[: len(whole) // 2])
  at = whole.index(b"NUMPY")  # of the first array, which has a checksum
  (path / "flip.npz").write_bytes(whole[:at] + b"n" + whole[at + 1 :])
  (path / "empty").write_bytes(b"")
  (path / "text").write_text("hello")
  np.save(path / "plain.npy", np.ones(3))
  np.save(path / "objs.npy", np.array([{}], object))


def _by_function():
  groups = collections.defaultdict(list)
  for row in table():
    groups[row.expression.partition("(")[0]].append(row)
  return groups


@pytest.fixture(scope="module")
def known():
  with tempfile.TemporaryDirectory() as folder:
    yield names(folder)


@pytest.mark.parametrize("function", sorted(_by_function()))
def test_bad_input_is_refused_by_argument_rule_and_value(function, known):
  found = {row.expression: complaint(row, known) for row in _by_function()[function]}
  assert not {expression: what for expression, what in found.items() if what}


def test_the_table_is_long():
  assert len(table()) >= 900


@pytest.mark.parametrize(
  ("row", "found"),
  [
    (Row("int('3')", "ValueError", "x"), "accepted: 3"),
    (Row("sj.drop(3, 0.3)", "ValueError", "score"), "want ValueError, got TypeError("),
    (Row("int('a')", "ValueError", "x"), "not ours: ValueError("),
    (Row("sj.drop(3, 0.3)", "TypeError", "magnitude"), "magnitude is not named: "),
    (Row("sj.drop(3, 0.3)", "TypeError", "score"), ""),
  ],
)
def test_other_errors_are_found(row, found, known):
  assert complaint(row, known).startswith(found)
  assert bool(complaint(row, known)) == bool(found)
