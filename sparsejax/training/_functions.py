"""Turns a flax module, with any variable collections, into two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

# The collection into which a flax module sows terms of its training loss.
_LOSSES = "losses"


class Functions(NamedTuple):
  """The two pure functions of a model.

  Attributes:
    init: `(key, images) -> (params, state)`. The state contains the model's variables
      other than parameters, such as the running averages of batch normalization; `{}`
      if there are none.
    apply: `(params, state, images, key) -> (logits, state)`. With a key the model is in
      training mode: batch normalization uses the batch's statistics, dropout draws from
      the key, and the returned state is the next one, including the model's own losses
      (see `auxiliary_loss`). With None the model is in evaluation mode, and the state
      is returned unchanged.
  """

  init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
  apply: Callable[
    [PyTree, PyTree, jax.Array, jax.Array | None], tuple[jax.Array, PyTree]
  ]


def from_flax(module: Any, dtype: str = "float32") -> Functions:
  """Returns the pure functions of a flax module.

  Args:
    module: a module with `init(key, images) -> variables` and
      `apply(variables, images) -> logits`. If it behaves differently in training, its
      `__call__` takes an argument `train`. What it sows into the collection "losses" in
      training is added to the training loss.
    dtype: the dtype to compute in. Parameters and floating-point images are cast to it,
      and logits to float32.

  Returns:
    `Functions`.

  Example:
    >>> from sparsejax import models
    >>> model = from_flax(models.create("mlp"))
    >>> images = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> list(params), state
    (['dense1', 'dense2', 'dense3'], {})
  """
  parameters = inspect.signature(type(module).__call__).parameters
  sows = "mutable" in inspect.signature(module.apply).parameters

  def init(key, images):
    variables = dict(module.init(key, images))
    variables.pop(_LOSSES, None)
    return variables.pop("params"), variables

  # A module without a `train` argument is applied in the same way in training, without
  # random keys, and its state does not change; but it may sow losses.
  def apply(params, state, images, key):
    variables = {"params": params, **state}
    if "train" not in parameters:
      if key is None or not sows:
        return module.apply(variables, images), state
      logits, sown = module.apply(variables, images, mutable=[_LOSSES])
      return logits, {**state, **sown}
    if key is None:
      return module.apply(variables, images, train=False), state
    return module.apply(
      variables,
      images,
      train=True,
      mutable=[*state, _LOSSES],
      rngs={"dropout": key},
    )

  def apply_cast(params, state, images, key):
    # Batch statistics stay float32; strict promotion forbids mixing them with `dtype`.
    with jax.numpy_dtype_promotion("standard"):
      logits, state = apply(cast(params), state, cast(images), key)
    return logits.astype(jnp.float32), state

  def cast(tree):
    return jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )

  return Functions(init, apply if dtype == "float32" else apply_cast)


def auxiliary_loss(state: PyTree) -> tuple[jax.Array, PyTree]:
  """Removes the model's own losses from its state and adds them up.

  Args:
    state: the state returned by `Functions.apply` in training mode.

  Returns:
    The sum of the losses, float32 (), and the state without them.

  Example:
    >>> auxiliary_loss({"losses": {"gate": (jnp.float32(0.5),)}})
    (Array(0.5, dtype=float32), {})
  """
  state = dict(state)
  losses = jax.tree.leaves(state.pop(_LOSSES, {}))
  total = jnp.zeros((), jnp.float32)
  for loss in losses:
    total += loss.astype(jnp.float32)
  return total, state
