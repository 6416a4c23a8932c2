"""A distribution in which the densities of some layers are fixed by name."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import Distribution, check_mapping, check_regex
from sparsejax.distributions._static import (
  Array,
  Shapes,
  check_distribution,
  layer_budgets,
  sizes_of,
  total_budget,
)


def override(
  distribution: Distribution, densities: Mapping[str, float]
) -> Distribution:
  """Fixes the density of some layers by name; the others share the remaining budget.

  budget_l = round(densities[pattern] * size_l) where a pattern matches; the total
  stays round(density * total size)

  Args:
    distribution: the distribution of the other layers.
    densities: maps a regular expression, which is searched for in the layer's path, to
      a density in [0, 1]; 1 keeps a layer dense. The first pattern that matches counts.

  Returns:
    A distribution.

  Raises:
    TypeError: `distribution` is not a function, or `densities` does not map regular
      expressions to numbers.
    ValueError: a density is outside [0, 1], or a pattern matches no layer. When the
      distribution is called: the fixed layers alone exceed the total, or the other
      layers are too small for the rest of it.

  Example:
    >>> import sparsejax as sj
    >>> keep_head = sj.override(sj.uniform, {"head": 1.0})
    >>> keep_head({"body": (10, 10), "head": (10, 2)}, 0.5)
    Array([40, 20], dtype=int32)
  """
  check_distribution(distribution)
  check_mapping("densities", densities, "from a regex to a density")
  for pattern, value in densities.items():
    check_regex("densities", pattern)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
      raise TypeError(f"densities must be numbers, got {value!r} for {pattern!r}.")
    if not 0 <= value <= 1:
      raise ValueError(f"densities must lie in [0, 1], got {value} for {pattern!r}.")

  def overridden(shapes: Shapes, density) -> Array:
    # Budgets of the layers that a pattern names; the first match wins.
    fixed = {}
    for pattern, value in densities.items():
      hits = [path for path in shapes if re.search(pattern, path)]
      if not hits:
        raise ValueError(
          f"densities must name layers, got {pattern!r}, which matches none of "
          f"{list(shapes)}."
        )
      for path in hits:
        fixed.setdefault(path, round(value * int(np.prod(shapes[path]))))
    # The other layers must be able to hold exactly what is left of the total. A traced
    # density cannot be checked here.
    total, size = total_budget(shapes, density), sum(sizes_of(shapes))
    rest = {path: shape for path, shape in shapes.items() if path not in fixed}
    spent = sum(fixed.values())
    room = sum(sizes_of(rest))
    if isinstance(total, int) and not spent <= total <= spent + room:
      raise ValueError(
        f"densities must leave a total of {total} weights (density {density} of "
        f"{size}) possible, got {spent} in the named layers and room for {room} in "
        "the others."
      )
    # Calls the distribution for the other layers, with the density that gives their
    # total. Nothing is left to distribute where the fixed layers use all of it.
    others = None
    if rest and not (isinstance(total, int) and total == spent):
      with jax.enable_x64(True):  # so that density * room rounds to exactly `left`
        left = total - spent
        left = left if isinstance(left, int) else left.astype(jnp.float64)
        density = left / room
      others = layer_budgets(distribution, rest, density)
    # Puts both kinds of budgets into the order of `shapes`.
    order = {path: i for i, path in enumerate(rest)}
    none = jnp.int32(0)
    budgets = [
      jnp.int32(fixed[path])
      if path in fixed
      else (none if others is None else others[order[path]])
      for path in shapes
    ]
    return jnp.stack(budgets)

  return overridden
