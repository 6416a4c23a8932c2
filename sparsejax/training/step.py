"""The compiled parts of training: init, a run of steps, evaluation.

A training run is a pure function of its seed and the step count: the order of an epoch,
the augmentation and the masks all follow from them. So a checkpoint of `TrainState` is
the whole position, the data's included, and a run that was stopped ends bit for bit
like one that was not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.training import augment as augment_lib
from sparsejax.training import data as data_lib
from sparsejax.training import functions, stream, streamed
from sparsejax.training import mesh as mesh_lib

PyTree = Any

# What a run's key is folded with: one stream for each use.
_INIT, _ORDER, _AUGMENT, _DROPOUT = range(4)


class TrainState(NamedTuple):
  """All that changes while training; with several seeds all but `step` is stacked.

  Attributes:
    step: updates done so far, int32 (). Seeds that run side by side share it, so that
      "is a mask update due" stays a branch under `vmap`.
    key: typed PRNG key, () or (seeds,); never changes.
    params: the model's parameters.
    model_state: what the model keeps beside them, such as running averages.
    opt_state: the state of the optimizer, masks included.
  """

  step: jax.Array
  key: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree


class Totals(NamedTuple):
  """Sums over examples; loss float32, the others int32, each () or (seeds,)."""

  loss: jax.Array
  correct: jax.Array
  examples: jax.Array

  def means(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean loss and accuracy on the host; NaN where there were no examples."""
    examples = np.asarray(self.examples, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.asarray(self.loss) / examples, np.asarray(self.correct) / examples


class Program(NamedTuple):
  """Compiled functions over one model and one optimizer.

  Attributes:
    init: `(seeds int32 (num_seeds,)) -> TrainState`.
    order: `(state) -> int32 (n,) or (num_seeds, n)`, the order of the state's epoch.
    batches: `(state, train, n) -> ` for each seed its first n batches,
      `(images float32, labels)`, normalized.
    run: `(state, train, order, stop) -> (state, Totals)`: steps from `state.step` up to
      `stop`, which must be in the same epoch. `state` is donated. `stop` is traced:
      runs of all lengths share one compilation.
    evaluate: `(state, split) -> Totals`, over a split padded to the batch size.
  """

  init: Callable[..., TrainState]
  order: Callable[..., jax.Array]
  batches: Callable[..., list[list[tuple[jax.Array, jax.Array]]]]
  run: Callable[..., tuple[TrainState, Totals]]
  evaluate: Callable[..., Totals]


def cross_entropy(
  logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> tuple[jax.Array, Totals]:
  """Mean cross-entropy over a batch, and its totals; labels of -1 are passed over.

  loss = -(1 - s) log p_label - s mean_c log p_c

  Args:
    logits: float (n, ..., classes).
    labels: int32 (n, ...), -1 where there is no example.
    smoothing: s, in [0, 1); the target spreads so much over all classes.

  Returns:
    The mean float32 (), and `Totals` of ().
  """
  counted = labels >= 0
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), jnp.maximum(labels, 0)
  )
  if smoothing:
    even = -jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    losses = (1 - smoothing) * losses + smoothing * even
  total = jnp.sum(jnp.where(counted, losses, 0))
  examples = jnp.sum(counted, dtype=jnp.int32)
  correct = jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32)
  mean = total / jnp.maximum(examples, 1).astype(jnp.float32)
  return mean, Totals(total, correct, examples)


def train_step(
  state: TrainState,
  images: jax.Array,
  labels: jax.Array,
  update_masks: jax.Array,
  *,
  apply: Callable[..., tuple[jax.Array, PyTree]],
  tx: optax.GradientTransformationExtraArgs,
  effective: Callable[[PyTree, PyTree], PyTree] = lambda params, opt_state: params,
  label_smoothing: float = 0.0,
) -> tuple[TrainState, Totals]:
  """One update on one batch.

  Args:
    state: of one seed.
    images: float32 (n, height, width, channels), normalized; or tokens, int32
      (n, length).
    labels: int32 (n,), or (n, length).
    update_masks: bool (); whether a mask update is due.
    apply: as of `functions.Functions`.
    tx: the sparse optimizer.
    effective: `(params, opt_state) -> params` that the model sees.
    label_smoothing: see `cross_entropy`.

  Returns:
    The next state, and the totals of the batch before the update.
  """
  key = jax.random.fold_in(jax.random.fold_in(state.key, _DROPOUT), state.step)

  def loss(params):
    seen = effective(params, state.opt_state)
    logits, model_state = apply(seen, state.model_state, images, key)
    auxiliary, model_state = functions.auxiliary_loss(model_state)
    mean, totals = cross_entropy(logits, labels, label_smoothing)
    return mean + auxiliary, (totals, model_state)

  (_, (totals, model_state)), grads = jax.value_and_grad(loss, has_aux=True)(
    state.params
  )
  updates, opt_state = tx.update(
    grads, state.opt_state, state.params, update_masks=update_masks
  )
  params = optax.apply_updates(state.params, updates)
  # A step that was not finite changes nothing, and a running average would not forget.
  model_state = jax.tree.map(
    lambda new, old: jnp.where(jnp.all(jnp.isfinite(new)), new, old),
    model_state,
    state.model_state,
  )
  return TrainState(state.step + 1, state.key, params, model_state, opt_state), totals


def make_program(
  model: Any,
  make_tx: Callable[[Any], optax.GradientTransformationExtraArgs],
  *,
  dataset: data_lib.Dataset,
  batch_size: int,
  due: Callable[[jax.Array], jax.Array],
  augment: augment_lib.Augmentation | None = None,
  num_seeds: int | None = None,
  label_smoothing: float = 0.0,
  sparsify_params: Callable[[PyTree, PyTree], PyTree] | None = None,
  effective: Callable[[PyTree, PyTree], PyTree] = lambda params, opt_state: params,
  compute_dtype: str = "float32",
  layout: mesh_lib.Layout | None = None,
) -> Program:
  """Compiles training of `model` by `make_tx(seed)` on data of `dataset`'s shape.

  Args:
    model: a flax module; see `functions.from_flax`.
    make_tx: `(seed) -> optimizer`; the seed may be traced, and only `init` may depend
      on it.
    dataset: gives shapes and channel statistics; the images themselves are arguments.
    batch_size: examples a step; what is left of an epoch is dropped.
    due: `(count of updates so far) -> bool`, whether this update changes masks.
    augment: `(key, images uint8) -> images`.
    num_seeds: None for one run; else every array but `step` has a leading axis of it.
    label_smoothing: of the loss that is trained on; see `cross_entropy`.
    sparsify_params: `(params, opt_state) -> params`, applied to what `init` drew.
    effective: `(params, opt_state) -> params` that the model sees.
    compute_dtype: see `functions.from_flax`.
    layout: the mesh that the state and each batch are cut over; None for one device.

  Returns:
    A `Program`.
  """
  tx, model = make_tx(0), functions.from_flax(model, compute_dtype)
  examples = len(dataset.train.labels)
  steps_per_epoch = examples // batch_size
  tokens = dataset.mean is None

  def normalize(images):
    if tokens:
      return images.astype(jnp.int32)
    return (images.astype(jnp.float32) - dataset.mean) * (1 / dataset.std)

  def cut(batch):
    """Each device takes the rows that it computes, from data that all devices hold."""
    if layout is None:
      return batch
    return jax.lax.with_sharding_constraint(batch, layout.batch)

  def init_one(seed):
    key = jax.random.key(seed)
    dtype = jnp.int32 if tokens else jnp.float32
    blank = jnp.zeros((1, *dataset.train.images.shape[1:]), dtype)
    params, model_state = model.init(jax.random.fold_in(key, _INIT), blank)
    opt_state = make_tx(seed).init(params)
    if sparsify_params is not None:
      params = sparsify_params(params, opt_state)
    return key, params, model_state, opt_state

  def order_one(key, epoch):
    key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    return jax.random.permutation(key, examples)

  def batches(state, train, n):
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
    if augment is not None:
      key = jax.random.fold_in(state.key, _AUGMENT)
      images = augment(jax.random.fold_in(key, state.step), images)
    return train_step(
      state,
      normalize(images),
      labels,
      update_masks,
      apply=model.apply,
      tx=tx,
      effective=effective,
      label_smoothing=label_smoothing,
    )

  def evaluate_one(state, split):
    params = effective(state.params, state.opt_state)

    def body(i, totals):
      take = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=i * size, slice_size=size
      )
      images, labels = cut((take(split.images), take(split.labels)))
      new = evaluate_batch(params, state, images, labels)
      return jax.tree.map(jnp.add, totals, new)

    size = evaluation_batch(len(split.labels), layout.shards if layout else 1)
    return jax.lax.fori_loop(0, len(split.labels) // size, body, _zeros(()))

  def evaluate_batch(params, state, images, labels):
    logits, _ = model.apply(params, state.model_state, normalize(images), None)
    return cross_entropy(logits, labels)[1]

  if num_seeds is None:
    shape = ()
    step, evaluate, order = step_one, evaluate_one, order_one
    init = lambda seeds: init_one(seeds[0])
  else:
    shape = (num_seeds,)
    axes = TrainState(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    step = jax.vmap(step_one, (axes, None, 0, None), (axes, 0))
    evaluate = jax.vmap(evaluate_one, (axes, None))
    order = jax.vmap(order_one, (0, None))
    init = jax.vmap(init_one)

  def run(state, train, order, stop):
    def body(count, carry):
      state, totals = carry
      start = count % steps_per_epoch * batch_size
      indices = jax.lax.dynamic_slice_in_dim(order, start, batch_size, axis=-1)
      state, new = constrained(step(state, train, indices, due(count)))
      return state, jax.tree.map(jnp.add, totals, new)

    # A loop over a traced number of steps: as fast as `scan`, much faster on CPU than
    # a jitted step called from Python, and compiled once for every length.
    return jax.lax.fori_loop(state.step, stop, body, (state, _zeros(shape)))

  def start(seeds):
    return TrainState(jnp.zeros((), jnp.int32), *init(seeds))

  places = whole = None  # as the compiler likes it: all on one device
  constrained = lambda x: x
  if layout is not None:
    abstract = jax.eval_shape(start, jax.ShapeDtypeStruct((1,), jnp.int32))
    places, whole = mesh_lib.of_state(layout, abstract), layout.replicated
    # Else the loop might carry the state in another layout, and gather it at its end.
    constrained = lambda x: jax.lax.with_sharding_constraint(x, (places, whole))
  if isinstance(dataset.train, stream.Stream):
    parts = streamed.functions(
      lambda *batch: constrained(step_batch(*batch)),
      lambda state, *batch: evaluate_batch(
        effective(state.params, state.opt_state), state, *batch
      ),
      normalize,
      batch_size=batch_size,
      due=due,
      order_stream=_ORDER,
      layout=layout,
      places=places,
    )
    return Program(init=jax.jit(start, out_shardings=places), **parts)
  return Program(
    init=jax.jit(start, out_shardings=places),
    order=jax.jit(
      lambda state: order(state.key, state.step // steps_per_epoch),
      out_shardings=whole,
    ),
    batches=batches,
    run=jax.jit(run, donate_argnums=0, out_shardings=(places, whole)),
    evaluate=jax.jit(evaluate, out_shardings=whole),
  )


def evaluation_batch(examples: int, shards: int = 1) -> int:
  """Returns the batch size evaluation uses for a split of that many examples.

  Args:
    examples: of the split.
    shards: into how many parts a batch is cut.

  Returns:
    At least 1, a multiple of `shards`.
  """
  size = max(1, min(examples, 500))
  return -(-size // shards) * shards


def _zeros(shape: tuple[int, ...]) -> Totals:
  zeros = functools.partial(jnp.zeros, shape)
  return Totals(zeros(jnp.float32), zeros(jnp.int32), zeros(jnp.int32))
