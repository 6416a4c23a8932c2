"""When a mask update is due."""

from typing import Any

import jax

Array = jax.Array


def mask_update_due(
  step: Array,
  update_masks: Any,
  update_every: int | None,
  start_step: int,
  end_step: int | None,
) -> Any:
  """Whether a mask update is due in this step.

  step > start_step and (step - start_step) % update_every == 0 and step <= end_step

  Args:
    step: int32, the number of updates, this one included.
    update_masks: overrides the schedule where it is not None.
    update_every: steps between mask updates; None never updates by itself.
    start_step: updates done before mask updates begin.
    end_step: no mask update after that many steps; None for no end.

  Returns:
    A bool, possibly traced; None where there is never any.
  """
  if update_masks is not None or update_every is None:
    return update_masks
  due = (step > start_step) & ((step - start_step) % update_every == 0)
  return due if end_step is None else due & (step <= end_step)
