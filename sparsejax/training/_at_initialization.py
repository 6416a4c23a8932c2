"""Masks that are found before the first step, by the methods that do so."""

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

# GraSP's: the logits are divided by it (Wang et al. 2020).
_TEMPERATURE = 200.0


def mask_finder(
  config: Any, module: Any, image_shape: tuple[int, ...]
) -> Callable[[PyTree, PyTree, Batches], PyTree] | None:
  """Returns what finds a run's masks from its initial weights, if its method does so.

  The loss is the mean cross-entropy, in training mode, as in the first step.

  Args:
    config: a complete config.
    module: the flax module that is trained.
    image_shape: of one image.

  Returns:
    `(params, model_state, batches) -> masks`, or None for all other methods.

  Raises:
    ConfigError: if `method_kwargs` do not fit the method.
  """
  if not METHODS[config.method].prunes_at_init:
    return None
  method = _methods.function(config.method)
  kwargs: dict[str, Any] = {
    "distribution": distribution(config.distribution),
    **config.method_kwargs.to_dict(),
  }
  accepted = inspect.signature(method).parameters
  unknown = sorted(set(kwargs) - set(accepted))
  if unknown:
    raise _errors.ConfigError(
      f"method_kwargs must be arguments of {config.method}"
      f" ({', '.join(accepted)}); got {', '.join(unknown)}"
    )
  if hasattr(module, "lowering"):
    # GraSP differentiates forwards, which only XLA's own convolution can.
    module = module.clone(lowering="lax")
  model = _functions.from_flax(module)
  temperature = _TEMPERATURE if config.method == "grasp" else 1.0

  def find(params, model_state, batches):
    def loss(params, batch):
      images, labels = batch
      # Dropout draws nothing new here: the key is a constant.
      logits, _ = model.apply(params, model_state, images, jax.random.key(0))
      return _step.cross_entropy(logits / temperature, labels)[0]

    def evaluate(params, images):
      return model.apply(params, model_state, images, None)[0]

    if config.method == "synflow":
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
  """Puts masks into a state that has not been trained yet.

  Args:
    find: of `mask_finder`.
    state: of one seed, or stacked over seeds.
    batches: what each seed sees.
    rescale: see `masked`.

  Returns:
    The state with those masks, and params that are zero where they say so.
  """
  start: Callable[..., PyTree] = functools.partial(masked, rescale=rescale)
  put = sj.with_masks
  if not state.key.ndim:
    masks = find(state.params, state.model_state, batches[0])
  else:
    start, put = jax.vmap(start), jax.vmap(put)
    # One seed after another: what finds masks may look at its numbers on the host.
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
  """Returns params that are zero where masks say so, scaled up if `rescale`."""
  params = sj.apply_masks(params, masks)
  return sj.rescale(params, masks) if rescale else params


def distribution(name: str) -> Any:
  """Returns a distribution by its name in a config; None for "global"."""
  return None if name == "global" else getattr(sj, name)
