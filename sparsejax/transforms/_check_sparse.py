"""A check that params and masks satisfy what a sparse optimizer promises."""

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
  count,
  is_array,
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
  """Raises unless masked weights are zero and live weights match the budgets.

  #{i : not m_i and w_i != 0} = 0  and  #{i in layer l : m_i} = budget_l

  Some programs leave masked weights nonzero without any error: `optax.scale`, a
  schedule, weight decay or an average after the sparse optimizer, or the sparse
  optimizer inside `optax.lookahead` or `optax.contrib.schedule_free`. This function
  detects that; call it wherever the loop logs. It costs one pass over weights and
  masks.

  What is checked depends on the method:

  - Methods that mask weights: both conditions, from the first update on. Before the
    first update, and between `sj.with_masks` and the next update, params may be dense.
  - Methods that mask in the forward pass (`sj.straight_through`, `sj.sr_ste`,
    `sj.top_kast`, `sj.edge_popup`): the budgets. Their params stay dense, and
    `sj.effective` is zero where masked by construction.
  - Those of them with soft masks (`sj.soft_masks`): the budgets, and that soft masks
    are finite and at least 0. What is live is said by the boolean `sj.masks`.
  - `sj.soft_threshold` and `sj.supermask` keep no masks in a state: nothing is checked.
  - `lottery.freeze_masked` keeps the values of masked weights on purpose; do not use
    this function with it.

  Outside of `jit` it raises immediately. Under `jit`, `vmap` or `scan` it is a
  `checkify.check`, so the step must be transformed by `jax.experimental.checkify`:

      step = jax.jit(checkify.checkify(step))
      error, (params, opt_state) = step(params, opt_state)
      error.throw()

  Args:
    params: the params that the optimizer trains, or others that should be equally
      sparse, such as their running average; in the container given to `init` (under
      nnx, in any container). Both parts of `optax.LookaheadParams` are checked.
      A whole module of equinox is accepted; leaves that are not arrays are ignored.
    opt_state: the state of an optimizer made by this package, possibly nested, from the
      same step as the params. Masks may be packed; states and params may be stacked
      over seeds.

  Raises:
    ValueError: a condition is violated; there is no sparse optimizer in the state;
      structures or shapes differ.
    checkify.JaxRuntimeError: a condition is violated, where `error.throw()` is called.

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
  find_masks(opt_state)  # raises if there are no masks to check
  trees = {"params": params}
  if isinstance(params, optax.LookaheadParams):
    trees = {"params.fast": params.fast, "params.slow": params.slow}
  # A whole module of equinox also holds functions and numbers, which have no masks.
  trees = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, trees)
  states = sparse_states(opt_state)
  # In a trace, add one `checkify.check` per leaf; otherwise compute all numbers in one
  # program and raise for the first that is not zero.
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
  # One compiled program for all leaves.
  return [number for number, _ in _faults(trees, states)]


def _faults(
  trees: dict[str, PyTree], states: list[SparseState]
) -> list[tuple[jax.Array, str]]:
  """Returns numbers that must be zero, each with a format string for its error."""
  faults = []
  for state in states:
    masks = unpack_tree(state.masks)
    paths = jax.tree_util.tree_leaves_with_path(masks)
    for (path, mask), budget in zip(paths, jax.tree.leaves(state.budgets), strict=True):
      difference = jnp.abs(live_in(mask, budget) - budget)
      message = (
        "opt_state must contain masks of as many live weights as their budgets say, "
        f"got a difference of {{number}} for {path_string(path)!r}."
      )
      faults.append((jnp.sum(difference, dtype=jnp.int32), message))
    for path, soft in jax.tree_util.tree_leaves_with_path(state.soft_masks):
      message = (
        "opt_state must contain soft masks that are finite and at least 0, got "
        f"{{number}} others for {path_string(path)!r}."
      )
      faults.append((count(~((soft >= 0) & jnp.isfinite(soft))), message))
    if isinstance(state, ForwardState):
      continue
    # Before the first update params may be dense. Under nnx the counter is inside a
    # variable; stacked states have several counters.
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
