"""A score from the Hessian diagonal, estimated again at every mask update."""

from collections.abc import Callable

import jax

from sparsejax.core import (
  PyTree,
  Score,
  ScoreInputs,
  check_arrays,
  check_callable,
  check_integer,
  merge,
)
from sparsejax.scores._hessian import hutchinson_diagonal
from sparsejax.scores._obd import obd_saliency


def hutchinson(
  loss: Callable[[PyTree], jax.Array], params: PyTree, *, samples: int = 32
) -> Score:
  """Estimates the cost of deleting each weight, from Hutchinson's Hessian diagonal.

  s = max(h, 0) w^2 / 2,  h = mean_s z_s * (H z_s) with random signs z_s

  At every mask update the current weights are inserted into `params`, the Hessian is
  taken with respect to them, and new signs are drawn. For a diagonal that is computed
  once use `sj.obd`.

  Args:
    loss: `params -> scalar`, on examples of the user's choice.
    params: the whole tree. A score gets the sparsified leaves only; for all other
      leaves these values are used.
    samples: how many sign vectors to average.

  Returns:
    A score; each use costs `samples` Hessian-vector products.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: `samples` is below 1.

  References:
    Bekas, Kokiopoulou & Saad 2007, "An estimator for the diagonal of a matrix", eq. 2.
    LeCun, Denker & Solla 1990, "Optimal brain damage", eq. 3.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj
    >>> loss = lambda params: jnp.sum(params["kernel"] ** 4)
    >>> tx = sj.drop(sj.hutchinson(loss, {"kernel": jnp.ones((4, 4))}), 0.3)
  """
  check_callable("loss", loss, "a function of the params", 1)
  check_arrays("params", params)
  check_integer("samples", samples, 1)

  def score(inputs: ScoreInputs) -> PyTree:
    def of_kernels(kernels):
      return loss(merge(params, kernels))

    diagonal = hutchinson_diagonal(
      of_kernels, inputs.params, inputs.key, samples=samples
    )
    return obd_saliency(inputs.params, diagonal)

  return score
