"""OWL: a distribution computed from the outliers among each layer's scores."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import Where, apportion, check_number
from sparsejax.distributions import sizes_of, total_budget
from sparsejax.post_training._find_layers import find_layers
from sparsejax.post_training._methods import wanda
from sparsejax.post_training._statistics import checked, input_statistics

PyTree = Any


def owl(
  apply_fn: Callable[[PyTree, Any], Any],
  params: PyTree,
  batches: Iterable[Any],
  where: Where = None,
  *,
  threshold: float = 5.0,
  spread: float = 0.08,
) -> Callable[[dict[str, tuple[int, ...]], float], jax.Array]:
  """Computes a distribution that gives layers with more outliers a higher density.

  D_l = share of |w_ij| ||x_j|| above threshold * (their mean in layer l)
  r_l = 2 (D_l - min D) / (max D - min D)
  density_l = density + spread * (r_l - mean of r over the layers), in [0.001, 1]

  The budgets sum exactly to the total budget of the density. In the paper all layers of
  a transformer block share one density; here each layer has its own.

  Args:
    apply_fn: as for `prune`.
    params: as for `prune`.
    batches: as for `prune`. Only norms are computed, in one pass over the dense
      network.
    where: as for `prune`.
    threshold: scores above this multiple of the layer's mean count as outliers; above
      0.
    spread: half the range of the layers' densities, in [0, 1).

  Returns:
    A distribution `(shapes, density) -> budgets` for `prune`.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range, or as for `input_statistics`.

  Reference: Yin et al., Outlier weighed layerwise sparsity (OWL): a missing secret
  sauce for pruning LLMs to high sparsity (2024), section 3.

  Example:
    >>> apply_fn = lambda params, x: x @ params["a"] @ params["b"]
    >>> params = {"a": jnp.eye(4), "b": jnp.ones((4, 4))}
    >>> keep = owl(apply_fn, params, [jnp.ones((2, 4))], threshold=2.0, spread=0.25)
    >>> keep({"a": (4, 4), "b": (4, 4)}, 0.5).tolist()
    [12, 4]
  """
  check_number("threshold", threshold, "be above 0", lambda v: 0 < v < float("inf"))
  check_number("spread", spread, "be in [0, 1)", lambda v: 0 <= v < 1)
  # Measure the share of outliers among each layer's Wanda scores.
  batches = [batch for _, batch in checked(batches)]
  statistics = input_statistics(apply_fn, params, batches, where, gram=False)
  network = find_layers(apply_fn, params, batches[0], where, "owl")
  leaves = jax.tree.leaves(params)
  outliers = {}
  for layer in network.layers:
    weights = jnp.asarray(leaves[layer.leaf]).reshape(-1)[layer.positions()]
    scores = wanda(weights.astype(jnp.float32), statistics[layer.name])
    far = scores > threshold * jnp.mean(scores)
    outliers[layer.name] = float(jnp.mean(far.astype(jnp.float32)))

  def distribution(shapes: dict[str, tuple[int, ...]], density: float) -> jax.Array:
    if set(shapes) != set(outliers):
      raise ValueError(
        f"owl must be given the layers that it has measured, {list(outliers)}, got "
        f"{list(shapes)}."
      )
    # Map the shares to densities around the given one, then round to exact budgets.
    ratios = np.array([outliers[name] for name in shapes])
    ratios = (ratios - ratios.min()) / max(float(np.ptp(ratios)), 1e-30) * 2 * spread
    densities = np.clip(ratios - ratios.mean() + density, 1e-3, 1)
    sizes = np.array(sizes_of(shapes))
    with jax.enable_x64(True):
      return apportion(
        jnp.asarray(densities * sizes),
        total_budget(shapes, density),
        jnp.asarray(sizes),
      )

  return distribution
