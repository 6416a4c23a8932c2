"""The schedule of mask updates."""

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
  """Returns whether a mask update is due in this step.

  step > start_step and (step - start_step) % update_every == 0 and step <= end_step

  Args:
    step: int32, the number of updates, this one included.
    update_masks: bool that overrides the schedule; None to follow it.
    update_every: steps between mask updates; None for no schedule.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.

  Returns:
    A bool, possibly traced; None if there is neither a schedule nor an override.
  """
  if update_masks is not None or update_every is None:
    return update_masks
  due = (step > start_step) & ((step - start_step) % update_every == 0)
  return due if end_step is None else due & (step <= end_step)


def check_schedule(update_every: Any, start_step: Any, end_step: Any) -> None:
  """Validates the schedule of mask updates; traced arguments pass.

  Args:
    update_every: see `mask_update_due`.
    start_step: see `mask_update_due`.
    end_step: see `mask_update_due`.

  Raises:
    TypeError: one is not an integer.
    ValueError: one is below its minimum.
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
  """Raises TypeError unless the value is None or one bool, which may be traced."""
  if update_masks is None or isinstance(update_masks, (bool, np.bool_)):
    return
  got = repr(update_masks)
  if isinstance(update_masks, (jax.Array, np.ndarray)):
    if update_masks.ndim == 0 and update_masks.dtype == bool:
      return
    got = f"{update_masks.dtype}{list(update_masks.shape)}"
  raise TypeError(f"update_masks must be one bool, got {got}.")
