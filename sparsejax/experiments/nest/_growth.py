"""Growth of a network in a synthesis: gradients, and the growth policies."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from sparsejax import growth
from sparsejax.core import salted
from sparsejax.experiments.nest._config import NestConfig
from sparsejax.training import TrainState, cross_entropy
from sparsejax.training import data as data_lib

PyTree = Any
_BATCH = 500
# The collection of a model's variables that contains its partial areas.
AREAS = "areas"
# What keys are salted with: those of a run, and below them those of one growth.
SEED, GRADIENTS, GROWTH, CONTRIBUTIONS = 0x73, 0x62, 0x67, 0x61
_CONNECTIONS, _WIRES, _NOISE = range(3)


def gradients(
  apply: Callable[..., Any],
  chain: tuple[growth.Layer, ...],
  dataset: data_lib.Dataset,
  batches: int,
) -> Callable[..., tuple[PyTree, list[jax.Array]]]:
  """Compiles a function that averages gradients over batches of training images.

  Args:
    apply: the `apply` of the model's `Functions`.
    chain: the model's layers.
    dataset: the data set, for shapes and statistics.
    batches: the number of batches; see `average`.

  Returns:
    `(state, train, key) -> (gradients like the params, bridging gradients)`. There is
    one bridging gradient per pair of consecutive dense layers, and None for other
    pairs.
  """
  pairs = list(itertools.pairwise(chain))
  dense = [len(a.shape) == len(b.shape) == 2 for a, b in pairs]

  # Run the model with a virtual kernel over each pair of dense layers.
  def bridged(bridges, *args):
    run = apply
    for (lower, upper), kernel in zip(pairs, bridges, strict=True):
      if kernel is not None:
        run = functools.partial(growth.bridge(run, lower, upper), kernel)
    return run(*args)

  def loss(wanted, state, images, labels):
    params, bridges = wanted
    logits, _ = bridged(bridges, params, state.model_state, images, None)
    return cross_entropy(logits, labels)[0]

  # The gradients with respect to the params and to virtual kernels of zero.
  def gradient(state, images, labels):
    bridges = [
      jnp.zeros((lower.shape[0], upper.shape[1])) if d else None
      for (lower, upper), d in zip(pairs, dense, strict=True)
    ]
    return jax.grad(loss)((state.params, bridges), state, images, labels)

  return average(gradient, dataset, batches)


def contributions(
  apply: Callable[..., Any], dataset: data_lib.Dataset, batches: int
) -> Callable[..., dict[str, jax.Array]]:
  """Compiles a function that averages contributions to feature maps over batches.

  Args:
    apply: the `apply` of the model's `Functions`, by ordinary convolutions.
    dataset: the data set, for shapes and statistics.
    batches: the number of batches; see `average`.

  Returns:
    `(state, train, key) -> dict`, as returned by `growth.area_contributions`.
  """

  def sizes(state, images, labels):
    del labels
    measure = growth.area_contributions(apply, state.model_state[AREAS])
    return measure(state.params, state.model_state, images, None)

  return average(sizes, dataset, batches)


def average(
  function: Callable[..., PyTree], dataset: data_lib.Dataset, batches: int
) -> Callable[..., PyTree]:
  """Compiles a function that averages another one over batches of training images.

  Args:
    function: `(state, images, labels) -> tree of arrays`, on normalized images.
    dataset: the data set, for shapes and statistics.
    batches: the number of batches, of 500 random images each: those of `batch_orders`,
      or the first ones of a stream in an order of its own.

  Returns:
    `(state, train, key) -> tree of arrays`. The key determines the batches.
  """
  examples = len(dataset.train.labels)
  size = min(_BATCH, examples)

  def value(state, images, labels):
    return function(state, dataset.normalize(images), labels)

  def zeros(state):
    of = dataset.train.images
    images = jax.ShapeDtypeStruct((size, *of.shape[1:]), of.dtype)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    like = jax.eval_shape(value, state, images, labels)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

  # In memory, the loop over the batches is compiled.
  @jax.jit
  def run(state, train, key):
    orders = batch_orders(key, examples, size, batches)

    def body(i, total):
      new = value(state, train.images[orders[i]], train.labels[orders[i]])
      return jax.tree.map(jnp.add, total, new)

    total = jax.lax.fori_loop(0, batches, body, zeros(state))
    return jax.tree.map(lambda x: x / batches, total)

  # The batches of a stream come from the host one by one.
  one = jax.jit(value)

  def run_streamed(state, train, key):
    seed = int(jax.device_get(jax.random.bits(key))) % 2**31
    total = zeros(state)
    for batch in itertools.islice(train.batches(0, size, seed, None), batches):
      total = jax.tree.map(jnp.add, total, one(state, *batch))
    return jax.tree.map(lambda x: x / batches, total)

  return run_streamed if isinstance(dataset.train, data_lib.Stream) else run


def batch_orders(key: jax.Array, examples: int, size: int, batches: int) -> jax.Array:
  """Draws batches of examples; none is repeated before all whole batches are drawn.

  Args:
    key: a PRNG key.
    examples: the number of examples.
    size: examples per batch, at most `examples`.
    batches: the number of batches.

  Returns:
    int32 (batches, size): consecutive parts of one permutation, then of others.

  Example:
    >>> orders = batch_orders(jax.random.key(0), examples=5, size=2, batches=3)
    >>> orders.shape, len(set(orders[:2].ravel().tolist()))
    ((3, 2), 4)
  """
  each = examples // size
  passes = [key, *(salted(key, i) for i in range(1, -(-batches // each)))]
  orders = [jax.random.permutation(k, examples)[: each * size] for k in passes]
  return jnp.concatenate(orders).reshape(-1, size)[:batches]


def grow(
  state: TrainState,
  chain: tuple[growth.Layer, ...],
  found: tuple[PyTree, list[Any]],
  loss: Callable[[PyTree], jax.Array],
  config: NestConfig,
) -> TrainState:
  """Applies policies 2, 3 and 1: grows units, then connections between all units.

  Args:
    state: the training state.
    chain: the model's layers.
    found: the result of the function that `gradients` returns.
    loss: `(params) -> scalar` on a batch, to evaluate new feature maps.
    config: a complete config.

  Returns:
    The state with the grown network; moments of the optimizer are unchanged.
  """
  wanted, bridges = found
  key = salted(state.key, GROWTH, state.step)
  params, masks = state.params, sj.masks(state.opt_state)
  # Grow the units of each hidden layer: neurons between two dense layers, by bridging
  # gradients; otherwise feature maps, by the best of random kernels.
  for i, count in enumerate(config.growth_units):
    wires = salted(key, _WIRES, i)
    if not count:
      continue
    if bridges[i] is not None:
      bridge = bridges[i]
      if config.units_by == "random":
        # The control: connect random pairs, with the same magnitudes.
        for axis in (0, 1):
          noise = salted(key, _NOISE, i, axis)
          bridge = jax.random.permutation(noise, bridge, axis)
      params, masks = growth.grow_neurons(
        params,
        masks,
        chain[i],
        chain[i + 1],
        bridge,
        wires,
        count=count,
        beta=config.pair_fraction,
        alpha=config.birth_strength,
      )
      continue
    candidates = 1 if config.units_by == "random" else config.map_candidates
    for j in range(count):
      params, masks, _ = growth.grow_feature_map(
        loss,
        params,
        masks,
        chain,
        i,
        salted(wires, j),
        candidates=candidates,
        density=config.density,
      )
  # Grow connections between all live units, new ones included.
  if config.connections_by == "random":
    leaves, treedef = jax.tree.flatten(wanted)
    keys = jax.random.split(salted(key, _CONNECTIONS), len(leaves))
    wanted = treedef.unflatten(
      jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    )
  count = round(config.growth_connections * connections(masks))
  masks = growth.grow_connections(masks, wanted, chain, np.int32(count))
  return with_masks(state._replace(params=params), masks)


def with_masks(state: TrainState, masks: PyTree) -> TrainState:
  """Replaces the masks of a training state and sets masked weights to zero."""
  opt_state = sj.with_masks(state.opt_state, masks)
  params = sj.apply_masks(state.params, sj.masks(opt_state))
  return state._replace(params=params, opt_state=opt_state)


def connections(masks: PyTree) -> int:
  """Counts the live weights."""
  return sum(int(mask.sum()) for mask in jax.tree.leaves(masks))


def missing_units(
  masks: PyTree, chain: tuple[growth.Layer, ...], wanted: tuple[int, ...]
) -> bool:
  """Returns whether a hidden layer has fewer unused units than are to be grown."""
  for count, units in zip(wanted, growth.live_units(masks, chain)[:-1], strict=True):
    if units.size - int(units.sum()) < count:
      return True
  return False
