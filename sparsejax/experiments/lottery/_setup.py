"""Builds the data, model, functions and optimizers of a lottery ticket experiment."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models
from sparsejax.core import path_string, salted
from sparsejax.experiments.lottery import _config
from sparsejax.experiments.lottery._config import LotteryConfig
from sparsejax.lottery import dense_masks, freeze_masked, layer_rates, random_masks
from sparsejax.training import (
  ConfigError,
  auxiliary_loss,
  cross_entropy,
  data,
  evaluation_batch,
  from_flax,
  learning_rate_schedule,
  make_unguarded_optimizer,
  sum_batches,
  total_steps,
)
from sparsejax.training.data import get_augmentation

PyTree = Any
_INIT, _AUGMENT, _DROPOUT = range(3)


class Setup(NamedTuple):
  """The objects derived from a complete config.

  Attributes:
    config: all fields, frozen and validated.
    stamp: the fields that identify the experiment, from `to_json`.
    steps: steps per training, including those before the rewind step.
    data: training images and labels, on the device.
    held_out: padded validation and test splits, on the device.
    init: `(key) -> (params, model_state)`.
    loss: the loss for `train_population`.
    validate: the validation loss for `train_population`.
    measure: the measurements for `train_population`: `validation_accuracy`,
      `validation_loss`, `test_accuracy`, `test_loss`.
    dense: the optimizer of the dense training.
    restarted: the optimizer of all later trainings.
    like: abstract `(params, model_state)` of one network.
    masks: abstract masks of one network.
  """

  config: LotteryConfig
  stamp: dict[str, Any]
  steps: int
  data: PyTree
  held_out: PyTree
  init: Any
  loss: Any
  validate: Any
  measure: Any
  dense: optax.GradientTransformation
  restarted: optax.GradientTransformation
  like: PyTree
  masks: PyTree


def prepare(config: Mapping[str, Any]) -> Setup:
  """Validates a config, loads the data, and builds all functions and optimizers.

  Nothing is trained or written.

  Args:
    config: some or all fields of `default_config`.

  Returns:
    A `Setup`.

  Raises:
    ConfigError: a field is invalid; the message names the field, its rule and its
      value.
    DatasetNotFoundError: the data set is not on this machine.
  """
  # Load the data set and check it against the config.
  c = _config.complete(config)
  t = c.train
  if t.dataset in ("text", *data.NOT_IN_MEMORY):
    raise ConfigError(
      f"train.dataset must be images that fit into memory; got {t.dataset!r}"
    )
  dataset = data.load(t.dataset, t.data_dir, t.validation_fraction)
  dataset = data.CENTERINGS[t.centering](dataset)
  examples = len(dataset.train.labels)
  if t.batch_size > examples:
    raise ConfigError(
      f"train.batch_size must be at most the {examples} training images; got"
      f" {t.batch_size}"
    )
  if not len(dataset.validation.labels):
    raise ConfigError(
      "train.validation_fraction must leave images to find the early stop on; got"
      f" {t.validation_fraction}"
    )
  steps = total_steps(t, examples)
  if c.rewind_step >= steps:
    raise ConfigError(
      f"rewind_step must be below the {steps} steps of a training; got {c.rewind_step}"
    )
  # Build the model, and check the leaves and rates of pruning on abstract values.
  try:
    module = models.create(t.model, num_classes=dataset.num_classes, **t.model_kwargs)
    model = from_flax(module, t.compute_dtype)
    blank = jnp.zeros((1, *dataset.train.images.shape[1:]), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), blank)
    masks = jax.eval_shape(lambda p: dense_masks(p, c.where or None), like[0])
    paths = [path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(masks)]
    layer_rates(paths, c.prune_fraction, dict(c.prune_rates))
    if c.stacked:
      shuffle = functools.partial(random_masks, stacked=c.stacked)
      jax.eval_shape(shuffle, masks, jax.random.key(0))
  except (TypeError, ValueError, KeyError) as e:
    raise ConfigError(f"train.model {t.model!r}: {e}") from e
  normalize, change = dataset.normalize, get_augmentation(t.augmentation)

  # The functions of one network, which are vmapped over seeds.
  def init(key):
    return model.init(salted(key, _INIT), blank)

  def loss(params, model_state, batch, key):
    images, drop = change(salted(key, _AUGMENT), batch[0]), salted(key, _DROPOUT)
    logits, model_state = model.apply(params, model_state, normalize(images), drop)
    auxiliary, model_state = auxiliary_loss(model_state)
    mean, _ = cross_entropy(logits, batch[1], t.label_smoothing)
    return mean + auxiliary, model_state

  def totals(params, model_state, split):
    def of_batch(images, labels):
      logits, _ = model.apply(params, model_state, normalize(images), None)
      return cross_entropy(logits, labels)[1]

    return sum_batches(of_batch, split, evaluation_batch(len(split.labels)))

  def validate(params, model_state, held_out):
    found = totals(params, model_state, held_out[0])
    return found.loss / found.examples.astype(jnp.float32)

  def measure(params, model_state, held_out):
    names = ("validation", "test")
    found = [totals(params, model_state, split) for split in held_out]
    return {
      f"{name}_{what}": value.astype(jnp.float32) / f.examples.astype(jnp.float32)
      for name, f in zip(names, found, strict=True)
      for what, value in (("accuracy", f.correct), ("loss", f.loss))
    }

  # Later trainings start at the rewind step of the schedule, except for fine-tuning,
  # which keeps the last learning rate.
  rate = learning_rate_schedule(t, steps)
  last = np.asarray(rate(jnp.int32(steps - 1)), np.float32)
  later = {
    "rewind": lambda count: rate(count + c.rewind_step),
    "learning_rate": lambda count: rate(count + c.rewind_step),
    "fine_tune": lambda count: jnp.asarray(last),
  }[c.restart]
  restarted = _sparse(make_unguarded_optimizer(t, later), c.where)
  if c.mask_zero != "zero":
    restarted = freeze_masked(restarted)
  padded = [
    data.pad(s, evaluation_batch(len(s.labels)))
    for s in (dataset.validation, dataset.test)
  ]
  return Setup(
    config=c,
    stamp=_config.to_json(c),
    steps=steps,
    data=jax.device_put(tuple(dataset.train)),
    held_out=jax.device_put(tuple(padded)),
    init=init,
    loss=loss,
    validate=validate,
    measure=measure,
    dense=_sparse(make_unguarded_optimizer(t, rate), c.where),
    restarted=restarted,
    like=like,
    masks=masks,
  )


def _sparse(inner, where):
  # Masks are set by `with_masks` and do not change during training.
  return sj.static_sparse(inner, 1.0, update_every=None, where=where or None)


def keys(config: LotteryConfig) -> jax.Array:
  """Returns one PRNG key per seed."""
  seeds = np.arange(config.train.num_seeds, dtype=np.int32) + np.int32(
    config.train.seed
  )
  return jax.vmap(jax.random.key)(seeds)
