"""Masks found before the first step by methods that prune at initialization."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sparsejax as sj
from sparsejax.training import _functions, _methods, _step
from sparsejax.training._methods import METHODS

PyTree = Any
Batches = list[tuple[jax.Array, jax.Array]]

# GraSP divides the logits by this temperature (Wang et al. 2020).
_TEMPERATURE = 200.0


def mask_finder(
  name: str,
  module: nn.Module,
  density: float,
  fields: Mapping[str, Any],
  kwargs: Mapping[str, Any],
) -> Callable[[PyTree, PyTree, Batches], PyTree]:
  """Returns the function that finds a run's masks from its initial weights.

  The loss is that of the first step: the mean cross-entropy in training mode, plus the
  model's own losses. GraSP divides the logits by 200. Methods without data use
  the model in evaluation mode.

  Args:
    name: a key of `METHODS` that prunes at initialization.
    module: the flax module to be trained.
    density: the fraction of weights kept.
    fields: values from the config, for those arguments that the method has.
    kwargs: further arguments of the method; they take precedence.

  Returns:
    `(params, model_state, batches) -> masks`.

  Raises:
    ConfigError: if `kwargs` do not fit the method.
  """
  kwargs = _methods.resolve_kwargs(name, kwargs)
  method = _methods.function(name)
  accepted = inspect.signature(method).parameters
  chosen = {field: value for field, value in fields.items() if field in accepted}
  chosen |= kwargs
  if hasattr(module, "lowering"):
    # GraSP uses forward-mode differentiation; only XLA's own convolution supports it.
    module = module.clone(lowering="lax")
  model = _functions.from_flax(module)
  temperature = _TEMPERATURE if name == "grasp" else 1.0

  def find(params, model_state, batches):
    def loss(params, batch):
      images, labels = batch
      # The key is constant, so dropout masks the same units in every call.
      logits, after = model.apply(params, model_state, images, jax.random.key(0))
      auxiliary, _ = _functions.auxiliary_loss(after)
      return _step.cross_entropy(logits / temperature, labels)[0] + auxiliary

    def evaluate(params, images):
      return model.apply(params, model_state, images, None)[0]

    if METHODS[name].data_free:
      seen = batches[0][0]
      inputs = jax.ShapeDtypeStruct((1, *seen.shape[1:]), seen.dtype)
      if "init" in accepted:
        example = jnp.zeros(inputs.shape, inputs.dtype)
        chosen.setdefault("init", lambda key: model.init(key, example)[0])
      return method(evaluate, params, inputs, density, **chosen)
    return method(loss, params, batches, density, **chosen)

  return find


def place_masks(
  find: Callable[[PyTree, PyTree, Batches], PyTree],
  state: _step.TrainState,
  batches: list[Batches],
  rescale: bool = False,
  stacked: Any = False,
) -> _step.TrainState:
  """Finds masks and puts them into a state before the first step.

  Args:
    find: the function from `mask_finder`.
    state: the state of one seed, or of several, stacked.
    batches: the batches of each seed.
    rescale: see `masked`.
    stacked: which leaves stack several layers; see `sj.sparsify`.

  Returns:
    The state with those masks, its params masked.
  """
  start: Callable[..., PyTree] = functools.partial(
    masked, rescale=rescale, stacked=stacked
  )
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


def masked(
  params: PyTree, masks: PyTree, rescale: bool, stacked: Any = False
) -> PyTree:
  """Returns masked params, scaled up by `sj.rescale` if `rescale`."""
  params = sj.apply_masks(params, masks)
  return sj.rescale(params, masks, stacked=stacked) if rescale else params


def distribution(name: str) -> Any:
  """Returns the distribution that a config names; None for "global"."""
  return None if name == "global" else getattr(sj, name)
