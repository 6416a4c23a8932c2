"""Every line of bad_input.txt is refused, with the message under it.

Two lines a row: an expression, and how the message of its error begins. An error of
ours names the argument, the rule and the value. `scripts/reliability.py` counts them.
"""

import collections
import pathlib
import tempfile
import traceback
import warnings
from typing import Any

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
from sparsejax.training import _config as config
from sparsejax.training import _metrics as metrics
from sparsejax.training import _run as run
from sparsejax.training import data
from sparsejax.training.data import _augment as augment

OURS = pathlib.Path(sj.__file__).parent
ERRORS = (TypeError, ValueError, OSError, training.TrainingError)


def table() -> list[tuple[str, str]]:
  """The rows, `(expression, message)`."""
  lines = pathlib.Path(__file__).with_name("bad_input.txt").read_text().splitlines()
  return [(e, m.strip()) for e, m in zip(lines[::2], lines[1::2], strict=True)]


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
    **{"sj": sj, "models": models, "training": training, "lottery": lottery},
    **{"post_training": post_training, "product": lambda p, x: x @ p["a"]},
    **{"second_order": second_order, "supermasks": supermasks, "theory": theory},
    **{"initializers": initializers, "analysis": analysis, "config": config},
    **{"results": results, "data": data, "checkpoint": checkpoint, "run": run},
    **{"augment": augment, "metrics": metrics},
  }


def complaint(expression: str, known: dict[str, Any]) -> str:
  """The message with which an expression is refused; what else happened, if not."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      value = eval(expression, known)
  except ERRORS as e:
    frames = traceback.extract_tb(e.__traceback__)
    if not pathlib.Path(frames[-1].filename).is_relative_to(OURS):
      return f"not ours: {e}"
    return str(e).replace(known["FOLDER"], "{folder}")
  except Exception as e:
    return f"a crash: {e!r}"
  return f"accepted: {value!r}"


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
  for expression, message in table():
    groups[expression.partition("(")[0]].append((expression, message))
  return groups


@pytest.fixture(scope="module")
def known():
  with tempfile.TemporaryDirectory() as folder:
    yield names(folder)


@pytest.mark.parametrize("function", sorted(_by_function()))
def test_bad_input_is_refused_by_name_rule_and_value(function, known):
  rows = _by_function()[function]
  found = {e: complaint(e, known) for e, _ in rows}
  assert {e: found[e][: len(m)] for e, m in rows} == dict(rows)


def test_the_table_is_long_and_says_rule_and_value():
  rows = table()
  assert len(rows) >= 900
  for expression, message in rows:
    assert any(rule in message for rule in (" must ", " takes ", "has no field")), (
      expression
    )
