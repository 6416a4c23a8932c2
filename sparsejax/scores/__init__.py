"""What a weight is worth: `(ScoreInputs) -> tree of floats`, higher = worth more.

Second-order quantities that need the loss, not only what an update sees, are plain
functions of it here; `obd` makes a score of a diagonal.
"""

from sparsejax.scores.accumulated import (
  accumulated,
  accumulated_magnitude,
  signed_gradient,
)
from sparsejax.scores.fisher import fisher
from sparsejax.scores.gauss_newton import (
  gauss_newton_diagonal,
  mlp_gauss_newton_diagonal,
)
from sparsejax.scores.gradient import gradient
from sparsejax.scores.hessian import (
  empirical_fisher_diagonal,
  hessian_diagonal,
  hessian_vector_product,
  hutchinson_diagonal,
)
from sparsejax.scores.hutchinson import hutchinson
from sparsejax.scores.magnitude import magnitude
from sparsejax.scores.momentum import momentum
from sparsejax.scores.movement import movement
from sparsejax.scores.noisy import noisy
from sparsejax.scores.obd import obd, obd_saliency
from sparsejax.scores.random import random
from sparsejax.scores.taylor import taylor

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
  "mlp_gauss_newton_diagonal",
  "momentum",
  "movement",
  "noisy",
  "obd",
  "obd_saliency",
  "random",
  "signed_gradient",
  "taylor",
]
