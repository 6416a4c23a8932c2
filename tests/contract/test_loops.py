"""The loops of the README and the guides, run as they stand in `examples/`."""

import importlib
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax import core

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
KERNELS = [(64, 100), (100, 10)]
LOOPS = ("loop", "nnx_optimizer", "pmap", "train_state")


@pytest.fixture(scope="module")
def run(request):
  """What an example's names are bound to at its end."""
  return vars(importlib.import_module(f"examples.{request.param}"))


def _check(params, masks):
  """A tenth of the 7,400 weights is live, all others are exactly zero."""
  masks = jax.tree.leaves(masks)
  assert [m.shape for m in masks] == KERNELS
  assert sum(int(m.sum()) for m in masks) == 740
  kernels = [p for p in jax.tree.leaves(params) if p.shape in KERNELS]
  for kernel, mask in zip(kernels, masks, strict=True):
    assert np.all(np.asarray(kernel)[~np.asarray(mask)] == 0)


@pytest.mark.parametrize("run", ["loop"], indirect=True)
def test_hand_written_loop(run):
  _check(run["params"], sj.masks(run["opt_state"]))
  assert run["accuracy"] > 0.85


@pytest.mark.parametrize("run", ["pmap"], indirect=True)
def test_pmap(run):
  _check(run["params"], sj.masks(run["opt_state"]))
  assert run["accuracy"] > 0.85
  replicas = sj.masks(run["replicas"][1])
  assert [m.shape for m in jax.tree.leaves(replicas)] == [(8, *s) for s in KERNELS]
  one = core.mask_checksum(sj.masks(run["opt_state"]))
  assert core.check_replicas(replicas, stacked=True) == int(one)

  # What drifts apart is told of.
  apart = jax.tree.map(np.array, replicas)
  first = jax.tree.leaves(apart)[0]
  first[5, 0, 0] = ~first[5, 0, 0]
  with pytest.raises(RuntimeError, match="must be the same on all replicas"):
    core.check_replicas(apart, stacked=True)


@pytest.mark.parametrize("run", ["train_state"], indirect=True)
def test_train_state(run):
  state = run["state"]
  assert int(state.step) == 300
  _check(state.params, sj.masks(state.opt_state))
  assert run["accuracy"] > 0.85


@pytest.mark.parametrize("run", ["nnx_optimizer"], indirect=True)
def test_nnx_optimizer(run):
  optimizer, model = run["optimizer"], run["model"]
  params, masks = nnx.state(model, nnx.Param), sj.masks(optimizer.opt_state)
  _check(params, masks)
  assert run["accuracy"] > 0.85
  pure = sj.masks(nnx.as_pure(optimizer.opt_state))
  for a, b in zip(jax.tree.leaves(pure), jax.tree.leaves(masks), strict=True):
    np.testing.assert_array_equal(a, b)
  for found in (masks, pure):
    masked = sj.apply_masks(params, found)
    assert type(masked) is type(params) is nnx.State
    chex.assert_trees_all_equal(masked, params)
  nnx.update(model, masked)  # and the module takes it back


def test_loops_are_as_short_as_the_readme_promises():
  # The other examples are programs of their own, not loops.
  for name in LOOPS:
    path = EXAMPLES / f"{name}.py"
    code = re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL)
    lines = [x for x in code.splitlines() if x.strip()]
    own = [x for x in lines if not x.startswith(("import ", "from "))]
    assert len(own) <= 20, path.name


def test_nnx_optimizer_starts_from_dense_weights_and_keeps_the_rest():
  """Biases take the inner optimizer's step; masks hold from the first update on."""
  model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
  tx = sj.rigl(optax.sgd(1.0), density=0.2)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  before = model.bias[...]
  grads = nnx.grad(lambda m: m(jnp.ones((1, 6))).sum())(model)
  optimizer.update(model, grads)
  np.testing.assert_array_equal(model.bias[...], before - 1)
  [mask] = jax.tree.leaves(sj.masks(optimizer.opt_state))
  assert int(mask.sum()) == 6
  assert np.all(np.asarray(model.kernel[...])[~np.asarray(mask)] == 0)
