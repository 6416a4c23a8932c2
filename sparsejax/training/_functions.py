"""A flax module as two pure functions, whatever variables it has."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

# Where a flax module sows what is added to the loss it is trained on.
_LOSSES = "losses"


class Functions(NamedTuple):
  """What training needs of a model.

  Attributes:
    init: `(key, images) -> (params, state)`. The state holds what a model keeps beside
      its parameters, such as the running averages of batch normalization; `{}` if it
      keeps nothing.
    apply: `(params, state, images, key) -> (logits, state)`. With a key the model
      trains: batches normalize themselves, dropout draws from the key, and the state
      that comes back is the next one, with the losses that the model has of its own
      (see `auxiliary_loss`). With None it is evaluated, the state unchanged.
  """

  init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
  apply: Callable[
    [PyTree, PyTree, jax.Array, jax.Array | None], tuple[jax.Array, PyTree]
  ]


def from_flax(module: Any, dtype: str = "float32") -> Functions:
  """Returns the functions of a flax module.

  Args:
    module: `init(key, images) -> variables`, `apply(variables, images) -> logits`. One
      that behaves otherwise while it trains takes an argument `train`. What it sows
      into the collection "losses" is added to the loss.
    dtype: what to compute in: parameters and images are cast to it, and logits back.

  Returns:
    Its `Functions`.

  Example:
    >>> from sparsejax import models
    >>> model = from_flax(models.create("mlp"))
    >>> images = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> list(params), state
    (['dense1', 'dense2', 'dense3'], {})
  """
  parameters = inspect.signature(type(module).__call__).parameters

  def init(key, images):
    variables = dict(module.init(key, images))
    variables.pop(_LOSSES, None)
    return variables.pop("params"), variables

  def apply(params, state, images, key):
    variables = {"params": params, **state}
    if "train" not in parameters:
      return module.apply(variables, images), state
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
    # Batch statistics stay in float32, which strict promotion would refuse to mix.
    with jax.numpy_dtype_promotion("standard"):
      logits, state = apply(cast(params), state, cast(images), key)
    return logits.astype(jnp.float32), state

  def cast(tree):
    return jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )

  return Functions(init, apply if dtype == "float32" else apply_cast)


def auxiliary_loss(state: PyTree) -> tuple[jax.Array, PyTree]:
  """Takes the losses that a model has of its own out of its state.

  Args:
    state: as `Functions.apply` returned it for training.

  Returns:
    Their sum, float32 (), and the state without them.

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
