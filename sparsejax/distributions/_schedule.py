"""Density schedules that end at a given density."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class EndingSchedule:
  """A schedule of densities, whose last one is known as it was given.

  float32 rounds a density, so the budgets of the rounded density may differ by one
  weight from `round(density * size)`. From `last_step` on, the budgets are those of
  `final` itself.

  Attributes:
    function: `step -> float32`, which is `final` from `last_step` on.
    last_step: the first step with the last density.
    final: the last density, in (0, 1].

  Example:
    >>> half = EndingSchedule(lambda step: 1 - 0.05 * step, last_step=10, final=0.5)
    >>> half(2)
    0.9
  """

  function: Callable[[Any], Any]
  last_step: int
  final: Any

  def __call__(self, step: Any) -> Any:
    return self.function(step)
