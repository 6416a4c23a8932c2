"""`explain` lists the products of a loss and the path that each takes."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj
from sparsejax.ops import _share, explain


def _net():
  params = {
    "first": jnp.ones((64, 256)),
    "stack": jnp.ones((2, 256, 256)),
    "small": jnp.ones((256, 20)),
    "full": jnp.ones((256, 64)),
  }

  def loss(params, x):
    dot = lambda x, w: sj.block_dot(x, w, (32, 32))
    x = dot(x, params["first"])
    x, _ = jax.lax.scan(lambda x, w: (dot(x, w), None), x, params["stack"])
    dims = (((1,), (0,)), ((), ()))
    y = sj.block_dot_general((32, 32))(x, params["small"], dims)
    return jnp.sum(y) + jnp.sum(dot(x, params["full"]))

  return params, loss


def test_each_product_is_explained():
  params, loss = _net()
  tx = sj.rigl(
    optax.sgd(0.1),
    0.07,
    where="first|stack",
    stacked="stack",
    structure=sj.block((32, 32)),
    update_every=2,
  )
  state = tx.init(params)
  found = explain(
    loss, sj.apply_masks(params, sj.masks(state)), state, jnp.ones((32, 64))
  )
  first, one, two, small, full = found
  assert (first.kernel, first.path, first.live, first.blocks) == (
    "first",
    "blocks",
    1,
    16,
  )
  assert first.saving == pytest.approx(15 / 16)
  assert [one.kernel, two.kernel] == ["stack[0]", "stack[1]"]
  assert one.path == two.path == "blocks"
  assert (small.path, small.live) == ("dense", None)
  assert "divide" in small.reason
  assert full.path == "dense"
  assert "16 blocks are live" in full.reason
  # At the step of a mask update the weights' gradient is dense.
  state = state._replace(count=state.count + 1)
  due = state.dense_gradients._replace(due=jnp.asarray(True))
  state = state._replace(dense_gradients=due)
  params = sj.apply_masks(params, sj.masks(state))
  first = explain(loss, params, state, jnp.ones((32, 64)))[0]
  assert first.path == "blocks, dense weight gradient"
  assert first.saving == pytest.approx(2 / 3 * 15 / 16)


def test_bad_input():
  params, loss = _net()
  with pytest.raises(ValueError, match="opt_state must"):
    explain(loss, params, optax.sgd(0.1).init(params), jnp.ones((32, 64)))
  with pytest.raises(TypeError, match="loss must be a function"):
    explain(None, params, None)


def test_small_products_are_dense(monkeypatch):
  monkeypatch.setattr(_share, "_SMALLEST", 2**25)
  params, loss = _net()
  tx = sj.static_sparse(optax.sgd(0.1), 0.07, where="first")
  found = explain(loss, params, tx.init(params), jnp.ones((32, 64)))
  assert "too small" in found[0].reason
