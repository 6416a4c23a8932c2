"""Scores: functions `(ScoreInputs) -> tree of floats`; higher means more important.

Second-order quantities that need the loss itself are plain functions of the loss, such
as `hessian_diagonal`. `obd` turns such a diagonal into a score.
"""

from sparsejax.scores._accumulated import (
  accumulated,
  accumulated_magnitude,
  signed_gradient,
)
from sparsejax.scores._fisher import fisher
from sparsejax.scores._gauss_newton import (
  dense_layers,
  gauss_newton_diagonal,
  mlp_factors,
  mlp_gauss_newton_diagonal,
)
from sparsejax.scores._gradient import gradient
from sparsejax.scores._hessian import (
  empirical_fisher_diagonal,
  hessian_diagonal,
  hessian_vector_product,
  hutchinson_diagonal,
)
from sparsejax.scores._hutchinson import hutchinson
from sparsejax.scores._magnitude import magnitude
from sparsejax.scores._magnitude_and_gradient import magnitude_and_gradient
from sparsejax.scores._momentum import momentum
from sparsejax.scores._movement import movement
from sparsejax.scores._noisy import noisy, normal_like
from sparsejax.scores._obd import obd, obd_saliency
from sparsejax.scores._random import random
from sparsejax.scores._sampled import sampled
from sparsejax.scores._taylor import taylor

__all__ = [
  "accumulated",
  "accumulated_magnitude",
  "empirical_fisher_diagonal",
  "fisher",
  "gauss_newton_diagonal",
  "gradient",
  "hessian_diagonal",
  "hessian_vector_product",
  "hutchinson",
  "hutchinson_diagonal",
  "magnitude",
  "magnitude_and_gradient",
  "mlp_gauss_newton_diagonal",
  "momentum",
  "movement",
  "noisy",
  "obd",
  "obd_saliency",
  "random",
  "sampled",
  "signed_gradient",
  "taylor",
]
