"""One contract for every method, optimizer, container and dtype.

The tables and the run whose facts are checked here are in `conftest.py`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sparsejax as sj


def _kernels(leaves, harness):
  return [leaf for leaf in leaves if harness.is_kernel(leaf)]


def test_pruned_weights_are_exactly_zero(run, harness):
  for step in run.steps[run.every - 1 :]:
    kernels = _kernels(step.after, harness)
    assert len(kernels) == len(step.masks)
    for kernel, mask in zip(kernels, step.masks, strict=True):
      assert kernel.shape == mask.shape
      assert np.all(kernel[~mask] == 0)
      assert np.all(np.isfinite(kernel.astype(np.float32)))


def test_live_weights_are_the_budgets_and_the_promised_total(run, harness):
  assert [int(m.sum()) for m in jax.tree.leaves(sj.masks(run.start[1]))] == (
    harness.budgets(run.start[1])
  )
  promised = [run.row.method.totals[0]] * (harness.STEPS + 1)
  for due, total in zip(harness.DUE, run.row.method.totals[1:], strict=True):
    promised[due:] = [total] * len(promised[due:])
  assert sum(harness.budgets(run.start[1])) == promised[0]
  for i, step in enumerate(run.steps):
    assert [int(m.sum()) for m in step.masks] == step.budgets
    assert sum(step.budgets) == promised[(i + 1) // run.every]


def test_masks_move_when_due_and_only_then(run, harness):
  moved, before = [], jax.tree.leaves(jax.device_get(sj.masks(run.start[1])))
  for i, step in enumerate(run.steps):
    if any(np.any(a != b) for a, b in zip(before, step.masks, strict=True)):
      moved.append(i + 1)
    before = step.masks
  moves = run.row.method.moves
  due = [d * run.every for d in (harness.DUE if moves is None else moves)]
  assert set(moved) <= set(due) if moves is None else moved == due


def test_live_weights_and_dense_leaves_get_the_inner_update(run, harness):
  # A weight that was ever dead has lived through other gradients inside MultiSteps.
  always = jax.tree.leaves(jax.device_get(sj.masks(run.start[1])))
  for i, step in enumerate(run.steps):
    always = [a & m for a, m in zip(always, step.masks, strict=True)]
    live, masks = iter(always), iter(step.masks)
    for update, bare, weight in zip(step.updates, step.bare, step.params, strict=True):
      if not harness.is_kernel(update):
        np.testing.assert_array_equal(update, bare)
        continue
      mask, steady = next(masks), next(live)
      if run.every == 1 and not run.row.method.fresh:
        steady = mask
      np.testing.assert_array_equal(update[steady], bare[steady])
      if (i + 1) % run.every == 0:
        np.testing.assert_array_equal(update[~mask], -weight[~mask])


def test_every_leaf_trains(run):
  first, last = run.steps[0].params, run.steps[-1].after
  assert all(np.any(a != b) for a, b in zip(first, last, strict=True))


def test_types_are_kept(run, harness):
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
  assert types(run.start[:2]) == types(run.end)
  last = run.steps[-1]
  for update, bare, weight in zip(last.updates, last.bare, last.params, strict=True):
    # Of a kernel the dtype of the sum, or the way to zero would be rounded.
    wide = harness.is_kernel(weight)
    with jax.numpy_dtype_promotion("standard"):
      wanted = jnp.promote_types(bare.dtype, weight.dtype) if wide else bare.dtype
    assert update.dtype == wanted


def test_the_step_is_traced_once(run):
  assert run.traces == 1


def test_init_takes_abstract_params(run):
  params, state, _ = run.start
  abstract = jax.eval_shape(lambda x: x, params)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert types(jax.eval_shape(run.tx.init, abstract)) == types(state)


def test_init_does_not_read_the_weights(run):
  params, state, _ = run.start
  again = run.tx.init(jax.tree.map(jnp.zeros_like, params))
  chex.assert_trees_all_equal(sj.masks(again), sj.masks(state))


def test_apply_masks_keeps_the_container(run):
  params, state = run.end
  masked = sj.apply_masks(params, sj.masks(state))
  assert type(masked) is type(params)
  assert jax.tree.structure(masked) == jax.tree.structure(params)
  if run.every == 1:
    chex.assert_trees_all_equal(masked, params)


def test_checkpoints_round_trip(run, tmp_path):
  params, state = run.end
  saved = {"params": params, "state": state}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "saved", saved)
    checkpointer.wait_until_finished()
    target = jax.eval_shape(lambda x: x, saved)
    restored = checkpointer.restore(tmp_path / "saved", target)
  assert jax.tree.structure(restored) == jax.tree.structure(saved)
  chex.assert_trees_all_equal(restored, saved)


def test_update_masks_overrides_the_schedule_and_other_arguments_pass(method):
  def scaled(updates, state, params=None, *, value, **extra_args):
    return jax.tree.map(lambda u: value * u, updates), state

  inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), scaled)
  if method.fresh:
    pytest.skip("its grown weights do not take the inner optimizer's step")
  tx = method(inner, update_every=10, start_step=0, end_step=10)
  params = {"a": jnp.ones((6, 5)), "b": jnp.ones((5, 4))}
  grads = {
    "a": jax.random.normal(jax.random.key(0), (6, 5)),
    "b": jax.random.normal(jax.random.key(1), (5, 4)),
  }
  step = jax.jit(
    lambda state, params, **extra: tx.update(grads, state, params, **extra)
  )
  state = tx.init(params)
  for flag in (False, True):
    before = sj.masks(state)
    updates, state = step(state, params, update_masks=flag, value=jnp.float32(2))
    masks = sj.masks(state)
    same = [bool(jnp.all(before[name] == masks[name])) for name in params]
    assert all(same) == (not flag or not method.moves)
    for name, mask in masks.items():
      expected = jnp.where(mask, 2 * grads[name], -params[name])
      np.testing.assert_array_equal(updates[name], expected)
    params = optax.apply_updates(params, updates)


def test_gradients_that_marked_products_skip_are_not_needed(run, harness):
  """Zero gradients where `mark_dead` marks train the same network, bit for bit."""
  params, state, bare = run.start
  params = sj.apply_masks(params, sj.masks(state))
  seen = jax.jit(_without_marked)
  whole = partly = params, state, bare
  _, dtype = harness.dtypes(run.row)
  for grads in harness.gradients(params, harness.STEPS * run.every, dtype):
    whole = run.program(*whole, grads)[:3]
    partly = run.program(*partly, seen(grads, *partly[:2]))[:3]
    masks = sj.masks(whole[1]), sj.masks(partly[1])
    chex.assert_trees_all_equal(*masks)
    chex.assert_trees_all_equal(whole[0], partly[0])


def _without_marked(grads, params, state):
  def seen(grad, weight, marked):
    dead = (marked == 0) & jnp.signbit(marked) & ~jnp.signbit(weight)
    return jnp.where(dead, jnp.zeros_like(grad), grad)

  return jax.tree.map(seen, grads, params, sj.mark_dead(params, state))
