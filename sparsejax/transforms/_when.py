"""When a mask update is due."""

from typing import Any

import jax
import numpy as np

from sparsejax.core import check_integer, check_scalar

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


def check_schedule(update_every: Any, start_step: Any, end_step: Any) -> None:
  """Raises unless the arguments say when mask updates are due; traced ones pass.

  Args:
    update_every: see `mask_update_due`.
    start_step: see `mask_update_due`.
    end_step: see `mask_update_due`.

  Raises:
    TypeError: one is not an integer.
    ValueError: one is below its least value.
  """
  for name, value, least in (
    ("update_every", update_every, 1),
    ("start_step", start_step, 0),
    ("end_step", end_step, 0),
  ):
    if isinstance(value, jax.Array):
      check_scalar(name, value)
    if (value is None and name != "start_step") or isinstance(value, jax.Array):
      continue
    check_integer(name, value, least)


def check_update_masks(update_masks: Any) -> None:
  """Raises TypeError unless a value is None or one bool, traced or not."""
  if update_masks is None or isinstance(update_masks, (bool, np.bool_)):
    return
  got = repr(update_masks)
  if isinstance(update_masks, (jax.Array, np.ndarray)):
    if update_masks.ndim == 0 and update_masks.dtype == bool:
      return
    got = f"{update_masks.dtype}{list(update_masks.shape)}"
  raise TypeError(f"update_masks must be one bool, got {got}.")
