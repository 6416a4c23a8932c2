"""Any value in any place: accepted if it keeps the rules, else refused in our words."""

import inspect
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax import training
from sparsejax.training import config

OURS = pathlib.Path(sj.__file__).parent
SGD = optax.sgd(0.1)
METHODS = ["rigl", "sparse_evolution", "sparse_momentum", "snfs", "dsr", "deep_r"]
METHODS += ["gradual_magnitude", "one_shot", "ac_dc", "movement_pruning", "top_kast"]
METHODS += ["static_sparse", "straight_through", "sr_ste", "isometric", "dense"]
METHODS += [
  "granet",
  "mest",
  "s_ste",
  "spartan",
  "powerpropagation",
  "continuous_sparsification",
  "chts",
]
ANYTHING = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 3),
  st.integers(-(2**70), 2**70),
  st.floats(),
  st.floats(0, 1),
  st.text(max_size=3),
  st.just(b"x"),
  st.lists(st.integers(), max_size=2),
  st.dictionaries(st.text(max_size=2), st.floats(), max_size=2),
  st.sampled_from([(), object(), len, SGD, sj.erk, sj.n_m(2, 4), 1j, {1}]),
  st.sampled_from([np.ones(2), np.float32(0.5), np.array("a"), np.int8(3)]),
  st.sampled_from([jnp.ones(2), jax.ShapeDtypeStruct((2,), "float32")]),
)


def refused(call) -> bool:
  """Whether a call is refused; an error that is not in our words is raised again."""
  try:
    call()
  except (TypeError, ValueError, training.TrainingError) as e:
    last = traceback.extract_tb(e.__traceback__)[-1].filename
    words = any(w in str(e) for w in (" must ", "has no field"))
    if not (pathlib.Path(last).is_relative_to(OURS) and words):
      raise AssertionError(f"not in our words: {e!r}") from e
    return True
  return False


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_methods(method, data):
  make = getattr(sj, method)
  names = [
    n for n in inspect.signature(make).parameters if n not in ("inner", "sparse")
  ]
  chosen = data.draw(st.lists(st.sampled_from(sorted(names)), max_size=3, unique=True))
  kwargs = {"density": 0.5, **{name: data.draw(ANYTHING) for name in chosen}}
  if refused(lambda: make(SGD, **kwargs)):
    return
  density, every = kwargs["density"], kwargs.get("update_every", 1)
  traced = isinstance(density, jax.Array) or callable(density)
  assert traced or density is None or 0 < density <= 1
  assert isinstance(every, jax.Array) or every is None or every >= 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(a=ANYTHING, b=ANYTHING, c=ANYTHING)
def test_parts_of_methods(a, b, c):
  scope = c if isinstance(c, str) else "layer"
  for call in (
    lambda: sj.drop(a, b, scope),
    lambda: sj.grow(a),
    lambda: sj.redistribute(a),
    lambda: sj.prune_to(a, b, c),
    lambda: sj.chain(a, b),
    lambda: sj.noisy(a, b),
    lambda: sj.cubic(a, b, c, 10),
    lambda: sj.n_m(a, b, c),
    lambda: sj.block(a),
    lambda: sj.channel(a),
    lambda: sj.constant_fan_in(a),
    lambda: sj.override(a, b),
    lambda: sj.accumulate(a, b, c),
    lambda: sj.drop_below(a, b, c),
    lambda: sj.by_path(a, b),
    lambda: sj.masks(a),
    lambda: sj.pack(a) if not isinstance(a, dict | list | tuple) else None,
  ):
    refused(call)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(field=st.sampled_from(sorted(training.default_config())), value=ANYTHING)
def test_config_fields(field, value):
  if not refused(lambda: config.complete({field: value})):
    config.to_json(config.complete({field: value}))
