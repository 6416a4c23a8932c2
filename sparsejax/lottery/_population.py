"""Populations: tickets, controls and seeds that are trained by one vmapped step."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import check_callable, check_integer, check_optimizer
from sparsejax.lottery import _member
from sparsejax.lottery._member import Effective, Loss, Member, Population

PyTree = Any


def stack_members(
  tx: optax.GradientTransformation,
  keys: jax.Array,
  params: PyTree,
  masks: PyTree = None,
  model_state: PyTree = None,
) -> Member:
  """Creates members from arrays that are stacked on a leading axis.

  Args:
    tx: the optimizer of all members.
    keys: typed PRNG keys (members,). A member's data order and the keys passed to its
      loss depend on its key alone: equal keys give equal data orders.
    params: tree of arrays (members, ...).
    masks: tree of bool arrays (members, ...), None at leaves without a mask; None for
      the masks that `tx.init` returns.
    model_state: tree of arrays (members, ...), further variables of the model.

  Returns:
    Members with masked weights exactly zero and fresh optimizer states.

  Raises:
    ValueError: leading axes differ, or masks do not fit the params or the optimizer.

  Example:
    >>> import sparsejax as sj
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=1.0)
    >>> params = {"kernel": jnp.ones((3, 2, 2))}
    >>> masks = {"kernel": jnp.ones((3, 2, 2), bool).at[2, 0, 1].set(False)}
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> stack_members(tx, keys, params, masks).params["kernel"][2].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
  """
  for name, tree in (
    ("params", params),
    ("masks", masks),
    ("model_state", model_state),
  ):
    for leaf in jax.tree.leaves(tree):
      if leaf.shape[:1] != keys.shape:
        raise ValueError(
          f"{name} must have the leading axis of keys, {keys.shape}, got shape "
          f"{leaf.shape}."
        )
  return _member.make(
    tx, keys, params, masks, {} if model_state is None else model_state
  )


def train_population(
  loss: Loss,
  tx: optax.GradientTransformation,
  members: Member,
  data: PyTree,
  *,
  batch_size: int,
  steps: int,
  start: int = 0,
  validate: Callable[[PyTree, PyTree, PyTree], jax.Array] | None = None,
  every: int = 100,
  measure: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None,
  measure_at: Sequence[int] = (),
  held_out: PyTree = None,
  due: Callable[[jax.Array], jax.Array] | None = None,
  effective: Effective = _member.forward_params,
  together: int | None = None,
  devices: Sequence[Any] | None = None,
  progress: Callable[[int, int, np.ndarray], None] | None = None,
  stopped: Callable[[], bool] = lambda: False,
) -> Population:
  """Trains networks that differ in weights, masks, seeds or data order side by side.

  All members take the same step, vmapped over a leading axis: gradient, `tx.update`,
  `optax.apply_updates`. Any model and any optax optimizer can be used. Each member
  reads epochs of the data in its own order, which its key determines; an incomplete
  last batch of an epoch is dropped. Training never stops early: every member trains for
  all steps, its step of lowest validation loss is recorded, and its weights of that
  step are measured afterwards.

  Args:
    loss: `(params, model_state, batch, key) -> (scalar, model_state)`. The batch is a
      slice of `data`, and the key is new at every step. `loss`, `validate` and
      `measure` receive the params that `effective` returns.
    tx: an optimizer of this package or of optax.
    members: from `stack_members`; a copy is trained.
    data: tree of arrays (examples, ...), shared by all members.
    batch_size: examples per step.
    steps: the number of updates after which training ends, including those before
      `start`.
    start: the number of updates that the members have had, for a run that is rewound
      or resumed. It determines the data order and the argument of `due`; the
      optimizer's own count does not change.
    validate: `(params, model_state, held_out) -> scalar loss`.
    every: steps between validations.
    measure: `(params, model_state, held_out) -> tree of arrays`, such as test accuracy.
    measure_at: the steps after which to measure; the last step and the early stop are
      always measured.
    held_out: the data passed to `validate` and `measure`.
    due: `(updates so far) -> bool`, whether the next update changes the masks of all
      members; it is passed to `tx.update` as `update_masks`. If None, the schedule of
      `tx` decides. Its counter is batched under `vmap`, so its branch becomes a select
      that computes both sides at every step.
    effective: `(params, opt_state) -> params` of the forward pass, such as
      `rescaled_effective`. By default `sj.effective`, or the params themselves if `tx`
      has no masks.
    together: the number of members per `vmap`; further members follow in later chunks.
      None for one at a time on a CPU, where `vmap` saves no time, and for all members
      elsewhere. If memory runs out, the chunk is halved until it fits.
    devices: devices to shard each chunk over; their number must divide `together`.
    progress: called every `every` steps with the number of members of earlier chunks,
      the step, and the validation losses so far of the current chunk,
      (members, validations).
    stopped: called about once per second; True ends the training.

  Returns:
    A `Population` with its metrics on the host.

  Raises:
    KeyboardInterrupt: `stopped` returned True.
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range.

  Example:
    >>> import sparsejax as sj
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> data = x, x @ jnp.array([[1.0], [0.0], [0.0], [2.0]])
    >>> def loss(params, state, batch, key):
    ...   return jnp.mean((batch[0] @ params["kernel"] - batch[1]) ** 2), state
    >>> tx = sj.static_sparse(optax.sgd(0.1), density=1.0)
    >>> params = {"kernel": jnp.zeros((2, 4, 1))}
    >>> masks = {"kernel": jnp.ones((2, 4, 1), bool).at[1, 3].set(False)}
    >>> keys = jax.random.split(jax.random.key(1), 2)
    >>> members = stack_members(tx, keys, params, masks)
    >>> done = train_population(loss, tx, members, data, batch_size=16, steps=100)
    >>> jnp.abs(done.members.params["kernel"][:, 3, 0]).round(1).tolist()
    [2.0, 0.0]
  """
  check_optimizer("tx", tx)
  check_callable("loss", loss, "a function of (params, model_state, batch, key)", 4)
  for name, look in (("validate", validate), ("measure", measure)):
    if look is not None:
      what = "a function of (params, model_state, held_out)"
      check_callable(name, look, what, 3)
  count = len(members.key)
  examples = {len(leaf) for leaf in jax.tree.leaves(data)}
  if len(examples) != 1:
    raise ValueError(f"data must share one leading axis, got {sorted(examples)}.")
  (n,) = examples
  for name, value, low, high in (
    ("batch_size", batch_size, 1, n),
    ("start", start, 0, None),
    ("steps", steps, start + 1, None),
    ("every", every, 1, None),
    ("together", 1 if together is None else together, 1, None),
    *(("measure_at", at, start + 1, steps) for at in measure_at),
  ):
    check_integer(name, value)
    if not (low <= value and (high is None or value <= high)):
      limit = f"in [{low}, {high}]" if high else f"at least {low}"
      raise ValueError(f"{name} must be {limit}, got {value}.")
  if together is None:
    together = 1 if jax.default_backend() == "cpu" and not devices else count
  together = min(together, count)
  if devices and together % len(devices):
    raise ValueError(
      f"together must be a multiple of the {len(devices)} devices, got {together}."
    )
  timetable = _member.Timetable(
    batch_size=batch_size,
    examples=n,
    start=start,
    steps=steps,
    validations=np.arange(start - start % every + every, steps + 1, every),
    measurements=np.unique([*measure_at, steps]),
  )

  # Train members low to high in one program. If memory runs out, train each half by
  # itself, with sizes that the number of devices divides.
  def chunk(low, high):
    program = _member.program(
      loss, tx, validate, measure, due, n, high - low > 1, effective
    )
    part = _take(members, low, size=high - low)
    show = None if progress is None else functools.partial(progress, low)
    try:
      return [program(part, data, held_out, timetable, devices, show, stopped)]
    except jax.errors.JaxRuntimeError as e:
      least = max(1, len(devices or ()))
      if "RESOURCE_EXHAUSTED" not in str(e) or high - low <= least:
        raise
    middle = low + math.ceil((high - low) / 2 / least) * least
    return chunk(low, middle) + chunk(middle, high)

  # Train chunk after chunk, then concatenate the results along the members' axis.
  parts = []
  for low in range(0, count, together):
    parts += chunk(low, min(low + together, count))
  if len(parts) == 1:
    return parts[0]
  rest = [p._replace(members=None, steps=None, measured=None) for p in parts]
  return jax.tree.map(lambda *x: np.concatenate(x), *rest)._replace(
    members=_join([p.members for p in parts]),
    steps=parts[0].steps,
    measured=parts[0].measured,
  )


# Jitted, because run eagerly the slices of every leaf and member compile separately.
@functools.partial(jax.jit, static_argnames="size")
def _take(members, low, *, size):
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, low, size), members)


@jax.jit
def _join(parts):
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
