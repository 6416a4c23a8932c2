"""The compiled functions of training: initialization, training steps, evaluation.

A training run is a pure function of its seed and the step count: they determine the
order of each epoch, the augmentation and the masks. A checkpoint of `TrainState`
therefore contains the position in the data too, and a resumed run ends bit for bit
like an uninterrupted one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import Pace, epoch_order, run_steps, salted
from sparsejax.training import _functions, _step, _streamed
from sparsejax.training import data as data_lib
from sparsejax.training.data import _augment, _stream
from sparsejax.training.parallel import _mesh
from sparsejax.transforms import UpdateSchedule

PyTree = Any


class Program(NamedTuple):
  """The compiled functions for one model and one optimizer.

  Attributes:
    init: `(seeds int32 (num_seeds,)) -> TrainState`.
    order: `(state) -> int32 (n,) or (num_seeds, n)`, the order of the examples in the
      current epoch; None for a stream.
    batches: `(state, train, n) -> list per seed` of its first n batches, each
      `(images float32, normalized, labels)`.
    run: `(state, train, order, stop, totals) -> (state, Totals)`, trains from
      `state.step` up to `stop`, which must be in the same epoch, and adds to `totals`,
      NumPy arrays such as those of `no_totals`. `state` is donated. `stop` is traced,
      so calls of all lengths share one compilation, and steps give the same bits in
      one call or in several.
    evaluate: `(state, split, stopped=None) -> Totals`, over a split whose length is a
      multiple of `evaluation_batch`, or over a stream. About once per second it calls
      `stopped`, and returns None if that is true.
  """

  init: Callable[..., _step.TrainState]
  order: Callable[..., jax.Array]
  batches: Callable[..., list[list[tuple[jax.Array, jax.Array]]]]
  run: Callable[..., tuple[_step.TrainState, _step.Totals]]
  evaluate: Callable[..., Any]


def make_program(
  model: Any,
  make_tx: Callable[[Any], optax.GradientTransformationExtraArgs],
  *,
  dataset: data_lib.Dataset,
  batch_size: int,
  schedule: UpdateSchedule,
  augment: _augment.Augmentation | None = None,
  num_seeds: int | None = None,
  label_smoothing: float = 0.0,
  sparsify_params: Callable[[PyTree, PyTree], PyTree] | None = None,
  effective: Callable[[PyTree, PyTree], PyTree] = lambda params, opt_state: params,
  mark: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
  compute_dtype: str = "float32",
  layout: _mesh.Layout | None = None,
) -> Program:
  """Builds the compiled functions that train `model` with `make_tx(seed)`.

  Args:
    model: a flax module; see `from_flax`. Or its `Functions`.
    make_tx: `(seed) -> optimizer`. The seed may be traced; only the optimizer's `init`
      may depend on it.
    dataset: gives the shapes and the channel statistics; the images themselves are
      arguments of the compiled functions.
    batch_size: examples per step. The examples of an epoch that do not fill a batch are
      dropped.
    schedule: the steps in which masks are updated. Its counter is the step that all
      seeds share: under `vmap`, a counter per seed would turn the branch of the mask
      update into a select that computes both sides at every step.
    augment: `(key, images uint8) -> images`, or None.
    num_seeds: None for one seed; else every array of the state but `step` has a leading
      axis of this size.
    label_smoothing: of the training loss; see `cross_entropy`.
    sparsify_params: `(params, opt_state) -> params`, applied to the initial parameters;
      None leaves them dense.
    effective: `(params, opt_state) -> params` of the forward pass.
    mark: see `train_step`.
    compute_dtype: see `from_flax`.
    layout: the mesh over which the state and each batch are sharded; None for one
      device.

  Returns:
    A `Program`.
  """
  # Only `init` uses an optimizer built with the run's seed; `update` is the same for
  # all seeds.
  tx = make_tx(0)
  if not isinstance(model, _functions.Functions):
    model = _functions.from_flax(model, compute_dtype)
  examples = len(dataset.train.labels)
  steps_per_epoch = examples // batch_size
  tokens = dataset.mean is None
  normalize = dataset.normalize

  def cut(batch):
    """Shards a batch over the mesh; the data set is replicated on all devices."""
    if layout is None:
      return batch
    return jax.lax.with_sharding_constraint(batch, layout.batch)

  # Functions of one seed. With several seeds they are vmapped below.
  def init_one(seed):
    key = jax.random.key(seed)
    dtype = jnp.int32 if tokens else jnp.float32
    blank = jnp.zeros((1, *dataset.train.images.shape[1:]), dtype)
    params, model_state = model.init(salted(key, _step.INIT), blank)
    opt_state = make_tx(seed).init(params)
    if sparsify_params is not None:
      params = sparsify_params(params, opt_state)
    return key, params, model_state, opt_state

  def order_one(key, epoch):
    return epoch_order(salted(key, _step.ORDER), epoch, examples)

  def batches(state, train, n):
    """Returns each seed's first batches, for methods that prune at initialization."""
    orders = order(state.key, 0).reshape(-1, examples)
    return [
      [
        (normalize(train.images[take]), train.labels[take])
        for take in jnp.split(one[: n * batch_size], n)
      ]
      for one in orders
    ]

  def step_one(state, train, indices, update_masks):
    images, labels = cut((train.images[indices], train.labels[indices]))
    return step_batch(state, images, labels, update_masks)

  def step_batch(state, images, labels, update_masks):
    """Augments and normalizes a batch, and performs one update on it."""
    if augment is not None:
      images = augment(salted(state.key, _step.AUGMENT, state.step), images)
    return _step.train_step(
      state,
      normalize(images),
      labels,
      update_masks,
      apply=model.apply,
      tx=tx,
      effective=effective,
      mark=mark,
      label_smoothing=label_smoothing,
    )

  shards = layout.shards if layout else 1

  def evaluate_one(state, split, totals, first, stop):
    """Adds the batches from `first` to `stop` of a padded split to the totals."""
    params = effective(state.params, state.opt_state)
    size = evaluation_batch(len(split.labels), shards)
    of_batch = lambda *batch: evaluate_batch(params, state, *cut(batch))
    return _step.sum_batches(of_batch, split, size, totals, first, stop)

  def evaluate_batch(params, state, images, labels):
    logits, _ = model.apply(params, state.model_state, normalize(images), None)
    return _step.cross_entropy(logits, labels)[1]

  # Vectorize over the seeds, which share the data. `step` has no seed axis, so that the
  # mask update stays a branch under `vmap`.
  if num_seeds is None:
    shape = ()
    step, evaluate, order = step_one, evaluate_one, order_one
    init = lambda seeds: init_one(seeds[0])
  else:
    shape = (num_seeds,)
    axes = _step.TrainState(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    step = jax.vmap(step_one, (axes, None, 0, None), (axes, 0))
    evaluate = jax.vmap(evaluate_one, (axes, None, 0, None, None))
    order = jax.vmap(order_one, (0, None))
    init = jax.vmap(init_one)

  def run(state, train, order, stop, totals):
    """Trains from `state.step` to `stop` on consecutive slices of the order."""

    def one(carry, indices, count):
      state, totals = carry
      state, new = constrained(step(state, train, indices, schedule.due(count + 1)))
      return state, jax.tree.map(jnp.add, totals, new)

    return run_steps(one, (state, totals), order, state.step, stop, batch_size)

  def start(seeds):
    return _step.TrainState(jnp.zeros((), jnp.int32), *init(seeds))

  # Shardings of the results. None leaves them to the compiler, on one device.
  places = whole = None
  constrained = lambda x: x
  if layout is not None:
    abstract = jax.eval_shape(start, jax.ShapeDtypeStruct((1,), jnp.int32))
    places, whole = _mesh.of_state(layout, abstract), layout.replicated
    # Without this constraint the compiler may choose another sharding for the loop's
    # carry and reshard the state after the loop.
    constrained = lambda x: jax.lax.with_sharding_constraint(x, (places, whole))
  # A stream's batches come from the host one by one, so its loop runs in Python.
  if isinstance(dataset.train, _stream.Stream):
    parts = _streamed.functions(
      lambda *batch: constrained(step_batch(*batch)),
      lambda state, *batch: evaluate_batch(
        effective(state.params, state.opt_state), state, *batch
      ),
      normalize,
      batch_size=batch_size,
      schedule=schedule,
      order_stream=_step.ORDER,
      layout=layout,
      places=places,
    )
    return Program(init=jax.jit(start, out_shardings=places), **parts)
  evaluate, pace = jax.jit(evaluate, out_shardings=whole), Pace()

  def evaluate_all(state, split, stopped=None):
    """Evaluates a padded split, in calls of about a second."""

    def part(totals, first, stop):
      bounds = np.int32(first), np.int32(stop)
      return jax.device_get(evaluate(state, split, totals, *bounds))

    batches = len(split.labels) // evaluation_batch(len(split.labels), shards)
    totals, done = pace.run(
      part, _step.no_totals(shape), 0, batches, stopped or (lambda: False)
    )
    return totals if done == batches else None

  return Program(
    init=jax.jit(start, out_shardings=places),
    order=jax.jit(
      lambda state: order(state.key, state.step // steps_per_epoch),
      out_shardings=whole,
    ),
    batches=batches,
    run=jax.jit(run, donate_argnums=0, out_shardings=(places, whole)),
    evaluate=evaluate_all,
  )


def evaluation_batch(examples: int, shards: int = 1) -> int:
  """Returns the batch size for evaluating a split: at most 500, rounded up to shards.

  Args:
    examples: the number of examples in the split.
    shards: the number of shards per batch.

  Returns:
    The least multiple of `shards` that is at least `max(1, min(examples, 500))`.
  """
  size = max(1, min(examples, 500))
  return -(-size // shards) * shards
