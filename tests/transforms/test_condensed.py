from typing import Any

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

BLOCKS = sj.block((2, 4))
MATRIX = {"dense/kernel": (8, 12), "dense/bias": (12,)}
ATTENTION = {"query/kernel": (8, 2, 4)}  # inputs, heads, features
STACK = {"layers/kernel": (2, 8, 8)}  # two layers


def draw(seed, shapes=MATRIX):
  rng = np.random.default_rng(seed)
  flat = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def train(tx: Any, steps=7, shapes=MATRIX):
  """Runs a compiled loop; returns the params, updates and masks of each step."""
  params, rows = draw(0, shapes), []
  with jax.numpy_dtype_promotion("standard"):  # bfloat16 moments need it in optax
    state = tx.init(params)
    # Every rounding to bfloat16 counts, as it does outside of `jit`.
    options = {"xla_allow_excess_precision": False}
    step: Any = jax.jit(tx.update, compiler_options=options)
    for i in range(steps):
      updates, state = step(draw(i + 1, shapes), state, params)
      params = optax.apply_updates(params, updates)
      rows.append((params, updates, sj.masks(state)))
  assert step._cache_size() == 1
  sj.check_sparse(params, state)
  return rows


def method(inner, structure=None, stacked: Any = False):
  options = {"update_every": 2, "drop_fraction": 0.5, "stacked": stacked}
  return sj.sparse_evolution(inner, 0.25, structure=structure, **options)


def masked(tree, masks):
  zero_dead = lambda x, m: x if m is None else jnp.where(m, x, 0 * x)
  return jax.tree.map(zero_dead, tree, masks)


def decay(params):
  return jax.tree.map(lambda x: x.ndim > 1, params)


@pytest.mark.parametrize(
  ("inner", "structure", "shapes"),
  [
    (optax.sgd(0.1, momentum=0.9, nesterov=True), BLOCKS, ATTENTION),
    (optax.adam(0.01, mu_dtype=jnp.bfloat16), None, MATRIX),
    (optax.adamw(0.01, weight_decay=0.1, mask=decay), BLOCKS, MATRIX),
    (optax.lion(optax.linear_schedule(0.1, 0.01, 5)), BLOCKS, STACK),
  ],
  ids=["nesterov", "adam", "adamw", "lion"],
)
def test_updates_are_those_of_moments_zeroed_where_masked(inner, structure, shapes):
  stacked = "layers" if shapes is STACK else False
  tx = sj.packed_masks(method(sj.condensed(inner), structure, stacked))
  rows = train(tx, shapes=shapes)
  # The inner optimizer alone, on masked gradients, its moments zeroed where masked.
  params = draw(0, shapes)
  treedef = jax.tree.structure(params)
  like_params = lambda node: jax.tree.structure(node) == treedef
  seen = set()
  with jax.numpy_dtype_promotion("standard"):
    state = inner.init(params)
    for i, (after, updates, masks) in enumerate(rows):
      state = jax.tree.map(
        lambda node, m=masks: masked(node, m) if like_params(node) else node,
        state,
        is_leaf=like_params,
      )
      grads = masked(draw(i + 1, shapes), masks)
      expected, state = inner.update(grads, state, params)
      expected = jax.tree.map(
        lambda u, p, m: u if m is None else jnp.where(m, u, -p), expected, params, masks
      )
      close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
      jax.tree.map(close, updates, expected)
      seen.add(np.asarray(jax.tree.leaves(masks)[0]).tobytes())
      params = after
  assert len(seen) == 4  # the masks at the start and those of three mask updates


def test_a_run_is_that_of_the_dense_state_bit_for_bit():
  # Up to the second mask update no weight can be grown for the second time.
  inner = optax.adamw(0.01)
  dense, ours = (train(method(i, BLOCKS), 5) for i in (inner, sj.condensed(inner)))
  for a, b in zip(dense, ours, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_state_takes_the_bytes_of_the_live_weights():
  params = {"kernel": jnp.ones((320, 320)), "bias": jnp.ones(320)}
  blocks = sj.block((32, 32))

  def size(inner, structure):
    tx = sj.rigl(inner, 0.1, structure=structure)
    state = jax.eval_shape(tx.init, params).inner_state
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

  adamw = optax.adamw(1e-3)
  # Two moments of 10,240 weights and of the bias, ten indices, a counter.
  assert size(sj.condensed(adamw), blocks) == 8 * (10_240 + 320) + 4 * 10 + 4
  assert size(sj.condensed(adamw), None) == 8 * (10_240 + 320) + 4 * 10_240 + 4
  assert size(adamw, blocks) == 8 * (102_400 + 320) + 4


def test_every_seed_of_a_population_has_its_own_places():
  def first(seed):
    tx: Any = sj.static_sparse(sj.condensed(optax.adam(0.1)), 0.25, seed=seed)
    params = {"kernel": jnp.ones((4, 4))}
    with jax.numpy_dtype_promotion("standard"):
      updates, state = tx.update(params, tx.init(params), params)
    return updates["kernel"], sj.masks(state)["kernel"]

  updates, masks = jax.vmap(first)(jnp.arange(3))
  np.testing.assert_allclose(updates, np.where(masks, -0.1, -1.0), rtol=1e-5)
  assert (masks.sum((1, 2)) == 4).all()


def test_shardings_that_the_compiler_chose_change_nothing():
  """Traced kernels do not tell `init` how they are sharded; the result is the same."""
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  tx = method(sj.condensed(optax.sgd(0.1, momentum=0.9)), BLOCKS)

  @jax.jit
  def train(params, grads):
    def step(carry, grads):
      params, state = carry
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), grads)
    return params, sj.masks(state), state.inner_state

  params, steps = draw(0), [draw(i + 1) for i in range(5)]
  grads = jax.tree.map(lambda *g: jnp.stack(g), *steps)
  sharded = NamedSharding(mesh, P("y", "x"))
  put = lambda x, s: jax.device_put(x, s if x.ndim > 1 else NamedSharding(mesh, P()))
  placed = jax.tree.map(lambda p: put(p, sharded), params)
  expected, found = train(params, grads), train(placed, grads)
  chex.assert_trees_all_equal(*jax.device_get((expected, found)))
  with pytest.raises(ValueError, match=r"must not be sharded .* at 'dense/kernel'"):
    tx.init(placed)


def test_a_dense_leaf_keeps_its_moments():
  """Its path ends with that of a sparse leaf, and its shape is that leaf's live one."""
  params = {"kernel": jnp.ones((16, 16)), "head": {"kernel": jnp.ones((16, 4))}}

  def trained(inner):
    tx = sj.rigl(
      inner, 0.25, update_every=2, where="^kernel$", structure=sj.block((4, 4))
    )
    new, state = sj.init(tx, params)
    update = jax.jit(tx.update)
    for i in range(3):
      key = jax.random.key(i)
      grads = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), new)
      updates, state = update(grads, state, new)
      new = optax.apply_updates(new, updates)
    return new

  sgd = optax.sgd(0.1, momentum=0.9)
  chex.assert_trees_all_equal(trained(sgd), trained(sj.condensed(sgd)))
