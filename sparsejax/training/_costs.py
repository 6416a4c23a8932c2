"""Estimates the multiply-adds of a run from the live weights in its records."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sparsejax import models
from sparsejax.analysis.costs import (
  forward_multiply_adds,
  kernel_uses,
  training_multiply_adds,
)
from sparsejax.core import path_string
from sparsejax.training._methods import METHODS


def history(records: Sequence[Any], index: int = 0) -> list[dict[str, int]]:
  """Returns the live weights of each layer at every evaluation.

  Args:
    records: the records from `read_metrics`.
    index: the index of a seed of the run.

  Returns:
    One dict per evaluation; the first evaluation is before the first step.
  """
  return [
    {name: int(np.atleast_1d(count)[index]) for name, count in record["live"].items()}
    for record in records
    if "live" in record
  ]


def estimate(
  history: Sequence[dict[str, int]],
  uses: Mapping[str, int],
  sizes: Mapping[str, int],
  method: str,
) -> tuple[float, float]:
  """Estimates the multiply-adds of a run as a fraction of those of a dense run.

  Args:
    history: the live weights from `history`.
    uses: uses per weight and example, by layer, from `kernel_uses`.
    sizes: the number of weights per layer.
    method: a key of `METHODS`.

  Returns:
    `(forward, training)`: the fraction for a forward pass of the final network, and
    the fraction for the whole training.
  """
  dense = {name: sizes[name] for name in history[0]}
  gradients = METHODS[method].dense_gradients
  cost = np.mean(
    [training_multiply_adds(uses, n, dense, gradients) for n in history[:-1] or history]
  )
  whole = forward_multiply_adds(uses, dense)
  return forward_multiply_adds(uses, history[-1]) / whole, float(cost) / (3 * whole)


def model_uses(
  model: str, model_kwargs: Mapping[str, Any], shape: Sequence[int], num_classes: int
) -> tuple[dict[str, int], dict[str, int]]:
  """Counts how often one example uses each weight of a model.

  Args:
    model: the name of a model, as in configs.
    model_kwargs: its arguments.
    shape: the shape of an image; of a text, `(tokens,)`.
    num_classes: the number of outputs.

  Returns:
    The uses per weight, from `kernel_uses`, and the number of weights, by path.
  """
  network = models.create(model, num_classes=num_classes, **model_kwargs)
  # Text has one axis, of integer tokens; images have three, and are normalized.
  dtype = "int32" if len(shape) == 1 else "float32"
  example = jax.ShapeDtypeStruct((1, *shape), dtype)
  params = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
  named = jax.tree_util.tree_leaves_with_path(params)
  sizes = {path_string(path): leaf.size for path, leaf in named}
  return kernel_uses(network, example), sizes
