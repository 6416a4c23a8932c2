"""A flax module as two pure functions, whatever variables it has."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Functions(NamedTuple):
  """What training needs of a model.

  Attributes:
    init: `(key, images) -> (params, state)`. The state holds what a model keeps beside
      its parameters, such as the running averages of batch normalization; `{}` if it
      keeps nothing.
    apply: `(params, state, images, key) -> (logits, state)`. With a key the model
      trains: batches normalize themselves, dropout draws from the key, and the state
      that comes back is the next one. With None it is evaluated, the state unchanged.
  """

  init: Callable[[jax.Array, jax.Array], tuple[PyTree, PyTree]]
  apply: Callable[
    [PyTree, PyTree, jax.Array, jax.Array | None], tuple[jax.Array, PyTree]
  ]


def from_flax(module: Any) -> Functions:
  """Returns the functions of a flax module.

  Args:
    module: `init(key, images) -> variables`, `apply(variables, images) -> logits`. One
      that behaves otherwise while it trains takes an argument `train`.

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
    return variables.pop("params"), variables

  def apply(params, state, images, key):
    variables = {"params": params, **state}
    if "train" not in parameters:
      return module.apply(variables, images), state
    if key is None:
      return module.apply(variables, images, train=False), state
    return module.apply(
      variables, images, train=True, mutable=list(state), rngs={"dropout": key}
    )

  return Functions(init, apply)
