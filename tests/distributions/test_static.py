"""Budgets at the start: exact totals, capacities, overrides."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import sparsejax as sj

LENET = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
CONV = {"conv": (3, 3, 16, 32), "block": (3, 3, 32, 32), "head": (128, 10)}


def test_tables():
  """Worked by hand: 5 % of 266,200 weights."""
  assert sj.uniform(LENET, 0.05).tolist() == [11760, 1500, 50]
  # 1084 : 400 : 110 of 13,310 are 9,051.47, 3,340.03 and 918.51.
  assert sj.erdos_renyi(LENET, 0.05).tolist() == [9051, 3340, 919]
  assert sj.erk(LENET, 0.05).tolist() == [9051, 3340, 919]
  # At 10 % the last is full, and 25,620 are split 1084 : 400.
  assert sj.erk(LENET, 0.1).tolist() == [18714, 6906, 1000]
  # 10 % of 15,104 is 1,510; 54 : 70 : 138 of it, the remainder to the largest.
  assert sj.erk(CONV, 0.1).tolist() == [311, 404, 795]


@settings(max_examples=60, deadline=None)
@given(
  density=st.floats(0.01, 1.0),
  name=st.sampled_from(["uniform", "erdos_renyi", "erk"]),
)
def test_exact_total_within_capacities(density, name):
  for shapes in (LENET, CONV):
    budgets = np.asarray(getattr(sj, name)(shapes, density))
    sizes = np.array([np.prod(s) for s in shapes.values()])
    assert budgets.sum() == round(density * sizes.sum())
    assert (budgets <= sizes).all()
    assert (budgets >= 1).all()


def test_every_layer_gets_a_weight():
  budgets = sj.uniform({"large": (1000, 10), "small": (1, 5), "tiny": (1, 2)}, 0.005)
  assert budgets.tolist() == [48, 1, 1]


def test_traced_density():
  f = jax.jit(lambda d: sj.erk(CONV, d))
  for density in (0.01, 0.1, 0.5, 1.0):
    assert f(jnp.float32(density)).tolist() == sj.erk(CONV, density).tolist()


def test_override():
  dense_head = sj.override(sj.erk, {"head": 1.0, "^conv": 0.5})
  budgets = dense_head(CONV, 0.3)
  assert budgets.tolist() == [2304, 4531 - 2304 - 1280, 1280]
  traced = jax.jit(lambda d: dense_head(CONV, d))(jnp.float32(0.3))
  assert traced.tolist() == budgets.tolist()
  everything = sj.override(sj.uniform, {"conv": 0.1, "block": 0.1, "head": 0.1})
  assert everything(
    {"head": (10, 10), "conv": (5, 4), "block": (2, 5)}, 0.1
  ).tolist() == [
    10,
    2,
    1,
  ]


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_density_out_of_range(density):
  with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got"):
    sj.uniform(LENET, density)


def test_bad_input():
  with pytest.raises(TypeError, match="density must be a number"):
    sj.uniform(LENET, "0.1")
  with pytest.raises(ValueError, match="2 weights for 3 layers"):
    sj.erk(LENET, 2 / 266_200)
  with pytest.raises(ValueError, match="densities must name layers, got 'fc9'"):
    sj.override(sj.uniform, {"fc9": 1.0})(LENET, 0.1)
  with pytest.raises(ValueError, match=r"densities must lie in \[0, 1\], got 2.0"):
    sj.override(sj.uniform, {"fc1": 2.0})
  with pytest.raises(ValueError, match="densities must leave a total of"):
    sj.override(sj.uniform, {"fc1": 1.0})(LENET, 0.1)


@pytest.mark.parametrize("shares", [sj.uniform, sj.erdos_renyi, sj.erk])
def test_no_layer_is_empty_where_the_total_allows_it(shares):
  """The largest budget is too small to give the weights of all empty layers."""
  shapes = {f"big{i}": (5, 6) for i in range(100)}
  shapes |= {f"small{i}": (2, 5) for i in range(100)}
  assert shares(shapes, 0.05).tolist() == [1] * 200
  sizes = {"a": (10,), "b": (10,), "c": (10,), "d": (1,), "e": (1,)}
  assert sj.uniform(sizes, 5 / 32).tolist() == [1] * 5
  assert sj.uniform(sizes, 6 / 32).tolist() == [2, 1, 1, 1, 1]
