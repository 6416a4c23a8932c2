"""A check that training keeps what a sparse optimizer promises."""

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.experimental import checkify

from sparsejax.core import (
  ForwardState,
  PyTree,
  SparseState,
  align,
  check_arrays,
  count,
  live_in,
  path_string,
  sparse_states,
  unpack_tree,
)
from sparsejax.core import masks as find_masks

_ADVICE = (
  "what comes after a sparse optimizer must leave its updates as they are, and weights "
  "that are averaged, restored or evaluated elsewhere need sj.apply_masks"
)


def check_sparse(params: PyTree, opt_state: PyTree) -> None:
  """Raises unless params and masks keep what the sparse optimizer promises.

  #{i : not m_i and w_i != 0} = 0  and  #{i in layer l : m_i} = budget_l

  `optax.scale`, a schedule, weight decay or an average after the sparse optimizer, or
  the sparse optimizer inside `optax.lookahead` or `optax.contrib.schedule_free`, leave
  masked weights that are not zero, in silence. This finds it; call it wherever the loop
  logs. It costs one pass over weights and masks.

  What is promised, and checked:

  - Methods that mask weights: both, from the first update on. Before it params may be
    dense, and after `sj.with_masks` until the next update.
  - Methods that mask in the forward pass (`sj.straight_through`, `sj.sr_ste`,
    `sj.top_kast`, `supermasks.edge_popup`): budgets. Their params stay dense;
    `sj.effective` is zero where masked by construction.
  - `sj.soft_threshold` and `sj.supermask` keep no masks in a state: nothing to check.
  - `lottery.freeze_masked` holds masked weights where they are, on purpose: not for it.

  Outside `jit` it raises at once. Under `jit`, `vmap` or `scan` it is a
  `checkify.check`, so the step must be transformed by `jax.experimental.checkify`:

      step = jax.jit(checkify.checkify(step))
      error, (params, opt_state) = step(params, opt_state)
      error.throw()

  Args:
    params: the params that the optimizer trains, or others that should be as sparse,
      such as their running average; in the container of `init`, under nnx in any. Both
      parts of `optax.LookaheadParams` are checked.
    opt_state: the state of an optimizer made by this package, possibly nested, of the
      same step as the params. May be packed, or stacked over seeds with the params.

  Raises:
    ValueError: a promise is broken; there is no sparsified optimizer in the state;
      structures or shapes differ.
    checkify.JaxRuntimeError: a promise is broken, where `error.throw()` is called.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=0.5)
    >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> sj.check_sparse(optax.apply_updates(params, updates), state)
    >>> halved = {"kernel": updates["kernel"] / 2}  # a schedule after the optimizer
    >>> sj.check_sparse(optax.apply_updates(params, halved), state)
    Traceback (most recent call last):
      ...
    ValueError: params must be 0 where masked, got 1 masked weights of 'kernel' that \
are not: what comes after a sparse optimizer must leave its updates as they are, and \
weights that are averaged, restored or evaluated elsewhere need sj.apply_masks.
  """
  find_masks(opt_state)  # raises where there is nothing to check
  check_arrays("params", params)
  trees = {"params": params}
  if isinstance(params, optax.LookaheadParams):
    trees = {"params.fast": params.fast, "params.slow": params.slow}
  states = sparse_states(opt_state)
  if any(isinstance(x, Tracer) for x in jax.tree.leaves((trees, states))):
    for number, message in _faults(trees, states):
      checkify.check(number == 0, message, number=number)
    return
  numbers = jax.device_get(_numbers(trees, states))
  if any(numbers):
    messages = [message for _, message in _faults(trees, states)]
    number, message = next((n, m) for n, m in zip(numbers, messages, strict=True) if n)
    raise ValueError(message.format(number=number))


@jax.jit
def _numbers(trees, states):
  # One program, however many leaves.
  return [number for number, _ in _faults(trees, states)]


def _faults(
  trees: dict[str, PyTree], states: list[SparseState]
) -> list[tuple[jax.Array, str]]:
  """Numbers that must be zero, each with what to say, for `str.format`, if not."""
  faults = []
  for state in states:
    masks = unpack_tree(state.masks)
    paths = jax.tree_util.tree_leaves_with_path(masks)
    for (path, mask), budget in zip(paths, jax.tree.leaves(state.budgets), strict=True):
      difference = jnp.abs(live_in(mask, budget) - budget)
      message = (
        "opt_state must hold masks of as many live weights as their budgets say, got a "
        f"difference of {{number}} for {path_string(path)!r}."
      )
      faults.append((jnp.sum(difference, dtype=jnp.int32), message))
    if isinstance(state, ForwardState):
      continue
    # Under nnx the counter stands in a variable; stacked states have several.
    started = jnp.any(jnp.stack(jax.tree.leaves(state.count)) > 0)
    for name, tree in trees.items():
      leaves = jax.tree_util.tree_leaves_with_path(tree)
      entries = align(tree, masks, strict=False)
      for (path, leaf), mask in zip(leaves, entries, strict=True):
        if mask is None:
          continue
        alive = count(~mask & (leaf != 0))
        message = (
          f"{name} must be 0 where masked, got {{number}} masked weights of "
          f"{path_string(path)!r} that are not: {_ADVICE}."
        )
        faults.append((jnp.where(started, alive, jnp.zeros_like(alive)), message))
  return faults
