"""Members of a population: their state, training step and compiled training program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import (
  Pace,
  apply_masks,
  epoch_order,
  run_steps,
  salted,
  sparse_states,
  with_masks,
)
from sparsejax.transforms import effective as sj_effective
from sparsejax.transforms import masked_start

PyTree = Any
# (params, model_state, batch, key) -> (scalar, model_state)
Loss = Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]
# (params, opt_state) -> params of the forward pass
Effective = Callable[[PyTree, PyTree], PyTree]
_ORDER, _STEP = range(2)  # what a member's key is folded with


class Member(NamedTuple):
  """The training state of one network; a population stacks it on a leading axis.

  Attributes:
    key: typed PRNG key; constant during training.
    params: the network's parameters.
    model_state: further variables of the network, such as running averages.
    opt_state: state of the optimizer, masks included.
  """

  key: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree


class Population(NamedTuple):
  """The result of `train_population`.

  The leading axis of every array is the member, except for `steps` and `measured`.

  Attributes:
    members: the members after the last step.
    steps: int64 (evaluations,), the steps after which `validate` was called.
    validation_loss: float32 (members, evaluations).
    early_stop: int64 (members,), the step of the lowest validation loss; the last step
      without `validate`.
    measured: int64 (measurements,), the steps after which `measure` was called.
    measurements: the results of `measure`, leaves of shape
      (members, measurements, ...); None without `measure`.
    at_early_stop: the results of `measure` for each member's weights at its early
      stop, leaves of shape (members, ...); None without `measure`.
  """

  members: Member
  steps: np.ndarray
  validation_loss: np.ndarray
  early_stop: np.ndarray
  measured: np.ndarray
  measurements: PyTree
  at_early_stop: PyTree


class Best(NamedTuple):
  """A member at its lowest validation loss so far.

  `params` are the masked weights of the forward pass at that step.
  """

  loss: jax.Array
  step: jax.Array
  params: PyTree
  model_state: PyTree


class Timetable(NamedTuple):
  """The steps of a training; see `train_population`."""

  batch_size: int
  examples: int
  start: int
  steps: int
  validations: np.ndarray
  measurements: np.ndarray

  def stops(self) -> np.ndarray:
    """Returns the steps where the compiled loop returns to Python.

    These are the validations, the measurements, the ends of epochs and the last step.
    """
    epoch = self.examples // self.batch_size
    ends = np.arange(self.start - self.start % epoch + epoch, self.steps, epoch)
    every = (self.validations, self.measurements, ends, [self.steps])
    return np.unique(np.concatenate(every))


@functools.partial(jax.jit, static_argnums=0)
def make(tx, keys, params, masks, model_state) -> Member:
  """Initializes the optimizer states of stacked members; see `stack_members`."""

  def one(key, params, masks, model_state):
    opt_state = tx.init(params)
    if masks is not None:
      opt_state = with_masks(opt_state, masks)
      params = apply_masks(params, masks)
    else:
      params = masked_start(params, opt_state)
    return Member(key, params, model_state, opt_state)

  return jax.vmap(one)(keys, params, masks, model_state)


def forward_params(params: PyTree, opt_state: PyTree) -> PyTree:
  """Returns the weights of the forward pass: `sj.effective`, or params if unmasked."""
  return sj_effective(params, opt_state) if sparse_states(opt_state) else params


# Cached, so that calls with the same functions, such as the levels of iterative pruning
# or the chunks of a population, compile once.
@functools.lru_cache(maxsize=16)
def program(
  loss: Loss,
  tx: Any,
  validate: Any,
  measure: Any,
  due: Callable | None,
  examples: int,
  stacked: bool,
  effective: Effective = forward_params,
) -> Callable:
  """Compiles training, validation and measurement of one chunk of members.

  Args:
    loss: see `train_population`.
    tx: see `train_population`.
    validate: see `train_population`.
    measure: see `train_population`.
    due: see `train_population`.
    examples: the number of training examples.
    stacked: whether there are several members, which are then vmapped.
    effective: see `train_population`.

  Returns:
    `(members, data, held_out, timetable, devices, show, stopped) -> Population`;
    members are donated.
  """
  tx = optax.with_extra_args_support(tx)

  # First the functions of one member; below they are vmapped and compiled.
  def step(member: Member, count, batch, extra) -> Member:
    key = salted(member.key, _STEP, count)

    def value(params):
      params = effective(params, member.opt_state)
      return loss(params, member.model_state, batch, key)

    grads, model_state = jax.grad(value, has_aux=True)(member.params)
    updates, opt_state = tx.update(grads, member.opt_state, member.params, **extra)
    params = optax.apply_updates(member.params, updates)
    return Member(member.key, params, model_state, opt_state)

  def order_one(key, epoch):
    return epoch_order(salted(key, _ORDER), epoch, examples)

  def validate_one(member, best, held_out, at):
    params = effective(member.params, member.opt_state)
    now = validate(params, member.model_state, held_out)
    better = now < best.loss
    loss = jnp.where(better, now.astype(jnp.float32), best.loss)
    new = Best(loss, at, params, member.model_state)
    # A loss of NaN compares false, so it never replaces the best weights. Where no loss
    # has been finite yet, the best weights are the latest.
    take = better | jnp.isinf(best.loss)
    return now, jax.tree.map(functools.partial(jnp.where, take), new, best)

  def measure_one(params, model_state, held_out):
    return measure(params, model_state, held_out)

  over = (lambda f, axes: jax.vmap(f, axes)) if stacked else (lambda f, axes: f)
  vstep = over(step, (0, None, 0, None))

  # Train from `start` to `stop`, which lie in the same epoch: `order` holds the data
  # order of that epoch, one row per member.
  @functools.partial(jax.jit, donate_argnums=0, static_argnames="size")
  def run(members, data, order, start, stop, *, size):
    def one(members, rows, count):
      batch = jax.tree.map(lambda x: x[rows], data)
      # All members share `count`, so under vmap the test for a mask update stays a
      # branch instead of a select that computes both sides.
      extra = {} if due is None else {"update_masks": due(count)}
      return vstep(members, count, batch, extra)

    return run_steps(one, members, order, start, stop, size)

  orders = jax.jit(over(order_one, (0, None)))
  look = jax.jit(over(validate_one, (0, 0, None, None)), donate_argnums=1)
  view = jax.jit(over(effective, (0, 0)))
  gauge = jax.jit(over(measure_one, (0, 0, None)))
  return functools.partial(
    _train, run, orders, look, view, gauge, validate, measure, stacked
  )


def _train(run, orders, look, view, gauge, validate, measure, stacked, *arguments):
  members, data, held_out, timetable, devices, show, stopped = arguments
  shape = members.key.shape
  # A single member is trained without the leading axis.
  if not stacked:
    members = _first(members)
  members, data, held_out = _placed(members, data, held_out, devices)
  epoch = timetable.examples // timetable.batch_size
  best = Best(
    jnp.full(shape if stacked else (), jnp.inf, jnp.float32),
    jnp.full(shape if stacked else (), timetable.steps, jnp.int32),
    *_copied((members.params, members.model_state)),
  )
  # Run the compiled loop from stop to stop. At each stop, draw the data order of a new
  # epoch, validate, and measure, where these are due.
  count, losses, results = timetable.start, [], []
  order, pace = orders(members.key, count // epoch), Pace()

  def part(members, start, stop):
    return run(members, data, order, start, stop, size=timetable.batch_size)

  for stop in timetable.stops().tolist():
    members, count = pace.run(part, members, count, stop, stopped)
    if count < stop:
      raise KeyboardInterrupt
    if count % epoch == 0:
      order = orders(members.key, count // epoch)
    if count in timetable.validations:
      if validate is not None:
        now, best = look(members, best, held_out, jnp.int32(count))
        losses.append(np.atleast_1d(now))
      if show is not None:
        show(count, np.stack(losses, -1) if losses else np.zeros((*shape, 0)))
    if measure is not None and count in timetable.measurements:
      now = view(members.params, members.opt_state)
      results.append(gauge(now, members.model_state, held_out))
  # Measure each member at its early stop; without a validation, after the last step.
  at_best = None
  if measure is not None:
    if not losses:
      now = view(members.params, members.opt_state)
      best = best._replace(params=now, model_state=members.model_state)
    # `best` holds masked weights, because masks may have changed after the early stop.
    at_best = gauge(best.params, best.model_state, held_out)
  # Give a single member its leading axis back, and stack the results over time.
  if not stacked:
    members, at_best = _alone((members, at_best))
  measurements = None
  if results:
    axis = 1 if stacked else 0
    results = jax.device_get(results)
    measurements = jax.tree.map(lambda *x: np.stack(x, axis=axis), *results)
    if not stacked:
      measurements = jax.tree.map(lambda x: x[None], measurements)
  return Population(
    members=members,
    steps=timetable.validations if losses else np.zeros(0, np.int64),
    validation_loss=np.stack(losses, axis=-1) if losses else np.zeros((*shape, 0)),
    early_stop=np.atleast_1d(np.asarray(best.step, np.int64)),
    measured=timetable.measurements if results else np.zeros(0, np.int64),
    measurements=measurements,
    at_early_stop=jax.device_get(at_best),
  )


# Jitted, because run eagerly every leaf compiles separately.
_first = jax.jit(lambda tree: jax.tree.map(lambda x: x[0], tree))
_alone = jax.jit(lambda tree: jax.tree.map(lambda x: x[None], tree))
_copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _placed(members, data, held_out, devices):
  """Shards the members over the devices and replicates the data."""
  if not devices:
    return members, data, held_out
  mesh = jax.sharding.Mesh(np.asarray(devices), ("members",))
  split, whole = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for axes in (("members",), ())
  )
  return (
    jax.device_put(members, split),
    jax.device_put(data, whole),
    jax.device_put(held_out, whole),
  )
