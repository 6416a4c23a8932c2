"""Masks found before the first step by methods that prune at initialization."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sparsejax as sj
from sparsejax.training import _errors, _functions, _methods, _step
from sparsejax.training._methods import METHODS

PyTree = Any
Batches = list[tuple[jax.Array, jax.Array]]

# GraSP divides the logits by this temperature (Wang et al. 2020).
_TEMPERATURE = 200.0


def mask_finder(
  config: Any, module: Any, image_shape: tuple[int, ...]
) -> Callable[[PyTree, PyTree, Batches], PyTree] | None:
  """Returns the function that finds a run's masks from its initial weights.

  The loss is the mean cross-entropy in training mode, as in the first step; GraSP
  divides the logits by 200. Methods without data use the model in evaluation mode.

  Args:
    config: a complete config.
    module: the flax module to be trained.
    image_shape: the shape of one image; not used.

  Returns:
    `(params, model_state, batches) -> masks`; None if the method does not prune at
    initialization.

  Raises:
    ConfigError: if `method_kwargs` do not fit the method.
  """
  if not METHODS[config.method].prunes_at_init:
    return None
  method = _methods.function(config.method)
  accepted = inspect.signature(method).parameters
  fields = {"distribution": distribution(config.distribution), "seed": config.seed}
  kwargs: dict[str, Any] = {
    **{name: value for name, value in fields.items() if name in accepted},
    **config.method_kwargs.to_dict(),
  }
  unknown = sorted(set(kwargs) - set(accepted))
  if unknown:
    raise _errors.ConfigError(
      f"method_kwargs must be arguments of {config.method}"
      f" ({', '.join(accepted)}); got {', '.join(unknown)}"
    )
  if hasattr(module, "lowering"):
    # GraSP uses forward-mode differentiation; only XLA's own convolution supports it.
    module = module.clone(lowering="lax")
  model = _functions.from_flax(module)
  temperature = _TEMPERATURE if config.method == "grasp" else 1.0

  def find(params, model_state, batches):
    def loss(params, batch):
      images, labels = batch
      # The key is constant, so dropout masks the same units in every call.
      logits, _ = model.apply(params, model_state, images, jax.random.key(0))
      return _step.cross_entropy(logits / temperature, labels)[0]

    def evaluate(params, images):
      return model.apply(params, model_state, images, None)[0]

    if METHODS[config.method].data_free:
      seen = batches[0][0]
      inputs = jax.ShapeDtypeStruct((1, *seen.shape[1:]), seen.dtype)
      return method(evaluate, params, inputs, config.density, **kwargs)
    return method(loss, params, batches, config.density, **kwargs)

  return find


def place_masks(
  find: Callable[[PyTree, PyTree, Batches], PyTree],
  state: _step.TrainState,
  batches: list[Batches],
  rescale: bool = False,
) -> _step.TrainState:
  """Finds masks and puts them into a state before the first step.

  Args:
    find: the function from `mask_finder`.
    state: the state of one seed, or of several, stacked.
    batches: the batches of each seed.
    rescale: see `masked`.

  Returns:
    The state with those masks, its params masked.
  """
  start: Callable[..., PyTree] = functools.partial(masked, rescale=rescale)
  put = sj.with_masks
  if not state.key.ndim:
    masks = find(state.params, state.model_state, batches[0])
  else:
    start, put = jax.vmap(start), jax.vmap(put)
    # One seed at a time, because `find` may read its values on the host, which `vmap`
    # does not allow.
    found = []
    for i, seen in enumerate(batches):
      params, model_state = jax.tree.map(
        lambda x, i=i: x[i], (state.params, state.model_state)
      )
      found.append(find(params, model_state, seen))
    masks = jax.tree.map(lambda *m: jnp.stack(m), *found)
  return state._replace(
    params=start(state.params, masks), opt_state=put(state.opt_state, masks)
  )


def masked(params: PyTree, masks: PyTree, rescale: bool) -> PyTree:
  """Returns masked params, scaled up by `sj.rescale` if `rescale`."""
  params = sj.apply_masks(params, masks)
  return sj.rescale(params, masks) if rescale else params


def distribution(name: str) -> Any:
  """Returns the distribution that a config names; None for "global"."""
  return None if name == "global" else getattr(sj, name)
