"""The training step: its state, its loss and its update."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.core import salted
from sparsejax.training import _functions

PyTree = Any

# The run's key is folded with one of these per use, for independent random streams.
INIT, ORDER, AUGMENT, DROPOUT = range(4)


class TrainState(NamedTuple):
  """The state of training; with several seeds, all but `step` is stacked.

  Attributes:
    step: updates done so far, int32 (). All seeds share it, so that the condition "is a
      mask update due" stays a branch under `vmap`.
    key: typed PRNG key, () or (seeds,); it never changes.
    params: the model's parameters.
    model_state: the model's other variables, such as running averages.
    opt_state: the optimizer's state, which includes the masks.
  """

  step: jax.Array
  key: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree


class Totals(NamedTuple):
  """Sums over examples: loss float32, correct and examples int32; () or (seeds,)."""

  loss: jax.Array
  correct: jax.Array
  examples: jax.Array

  def means(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean loss and the accuracy as NumPy arrays; NaN without examples."""
    examples = np.asarray(self.examples, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.asarray(self.loss) / examples, np.asarray(self.correct) / examples


def no_totals(shape: tuple[int, ...] = ()) -> Totals:
  """Returns totals of zero, as NumPy arrays.

  Args:
    shape: () or (seeds,).

  Returns:
    `Totals` of that shape.
  """
  zeros: Any = functools.partial(np.zeros, shape)
  return Totals(zeros(np.float32), zeros(np.int32), zeros(np.int32))


def sum_batches(
  totals_of: Callable[[jax.Array, jax.Array], Totals],
  split: Any,
  size: int,
  totals: Totals | None = None,
  first: jax.Array | int = 0,
  stop: jax.Array | int | None = None,
) -> Totals:
  """Adds up the totals of the batches of a split, in a compiled loop.

  Args:
    totals_of: `(images, labels) -> Totals` of one batch.
    split: images (n, ...) and labels (n, ...); n is a multiple of `size`.
    size: examples per batch.
    totals: the totals of earlier batches, of shape (); None for zeros.
    first: int32, the first batch to add; may be traced.
    stop: int32, the batch to stop before; may be traced. None for all.

  Returns:
    `Totals` of shape ().
  """

  def body(i, totals):
    batch = [
      jax.lax.dynamic_slice_in_dim(x, i * size, size)
      for x in (split.images, split.labels)
    ]
    return jax.tree.map(jnp.add, totals, totals_of(*batch))

  stop = len(split.labels) // size if stop is None else stop
  totals = no_totals() if totals is None else totals
  return jax.lax.fori_loop(first, stop, body, totals)


def cross_entropy(
  logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> tuple[jax.Array, Totals]:
  """Computes the mean cross-entropy of a batch and its totals, ignoring labels of -1.

  loss = -(1 - s) log p_label - s mean_c log p_c

  Args:
    logits: float (n, ..., classes).
    labels: int32 (n, ...); -1 marks padding.
    smoothing: s, in [0, 1), the share of the target that is spread evenly over all
      classes.

  Returns:
    The mean loss, float32 (), and `Totals` of shape ().
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
  mark: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
  label_smoothing: float = 0.0,
) -> tuple[TrainState, Totals]:
  """Performs one update on one batch.

  Args:
    state: the state of one seed.
    images: float32 (n, height, width, channels), normalized; or tokens, int32
      (n, length).
    labels: int32 (n,), or (n, length).
    update_masks: bool (); whether a mask update is due.
    apply: the `apply` of `Functions`.
    tx: the sparse optimizer.
    effective: `(params, opt_state) -> params` of the forward pass.
    mark: `sj.mark_dead` for a model whose products skip dead weights; None for others.
    label_smoothing: see `cross_entropy`.

  Returns:
    The next state, and the batch's totals, computed before the update.
  """
  # Dropout draws anew at each step.
  key = salted(state.key, DROPOUT, state.step)

  def loss(params):
    seen = effective(params, state.opt_state)
    if mark is not None:
      seen = mark(seen, state.opt_state, update_masks)
    logits, model_state = apply(seen, state.model_state, images, key)
    auxiliary, model_state = _functions.auxiliary_loss(model_state)
    mean, totals = cross_entropy(logits, labels, label_smoothing)
    return mean + auxiliary, (totals, model_state)

  (_, (totals, model_state)), grads = jax.value_and_grad(loss, has_aux=True)(
    state.params
  )
  updates, opt_state = tx.update(
    grads, state.opt_state, state.params, update_masks=update_masks
  )
  params = optax.apply_updates(state.params, updates)
  # The optimizer skips steps with a non-finite gradient. Running averages are kept too,
  # because a NaN in one would stay.
  model_state = jax.tree.map(
    lambda new, old: jnp.where(jnp.all(jnp.isfinite(new)), new, old),
    model_state,
    state.model_state,
  )
  return TrainState(state.step + 1, state.key, params, model_state, opt_state), totals
