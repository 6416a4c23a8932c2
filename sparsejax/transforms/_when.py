"""The schedule of mask updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import check_integer, check_scalar

Array = jax.Array


class UpdateSchedule(NamedTuple):
  """The steps in which masks are updated.

  Steps are counted from 1: step n is the n-th update of the optimizer.

  Attributes:
    start: steps before the schedule of mask updates begins.
    end: no mask update after this step; None for no limit.
    every: steps between mask updates; None for no mask updates.
  """

  start: int
  end: int | None
  every: int | None

  def due(self, step: Any) -> Array:
    """Returns whether masks are updated in a step.

    step > start and (step - start) % every == 0 and step <= end

    Args:
      step: int32, the number of updates, this one included; may be traced.

    Returns:
      bool, of the shape of `step`.

    Example:
      >>> schedule = UpdateSchedule(start=1, end=7, every=3)
      >>> [step for step in range(12) if schedule.due(jnp.int32(step))]
      [4, 7]
    """
    if self.every is None:
      return jnp.zeros(jnp.shape(step), bool)
    due = (step > self.start) & ((step - self.start) % self.every == 0)
    return due if self.end is None else due & (step <= self.end)

  def next_after(self, step: int) -> int | None:
    """Returns the first step after a given one with a mask update; None if none is due.

    Example:
      >>> schedule = UpdateSchedule(start=1, end=7, every=3)
      >>> schedule.next_after(0), schedule.next_after(4), schedule.next_after(7)
      (4, 7, None)
    """
    if self.every is None:
      return None
    update = max(-(-(step + 1 - self.start) // self.every), 1) * self.every + self.start
    return update if self.end is None or update <= self.end else None

  def number(self, first: int, last: int) -> int:
    """Returns the number of mask updates in the steps after `first`, up to `last`.

    Example:
      >>> UpdateSchedule(start=1, end=7, every=3).number(4, 100)
      1
    """
    every = self.every
    if every is None:
      return 0

    def until(step: int) -> int:
      step = step if self.end is None else min(step, self.end)
      return max(step - self.start, 0) // every

    return until(last) - until(first)


def mask_update_due(step: Array, update_masks: Any, schedule: UpdateSchedule) -> Any:
  """Returns whether a mask update is due in this step.

  Args:
    step: int32, the number of updates, this one included.
    update_masks: bool that overrides the schedule; None to follow it.
    schedule: the schedule of mask updates.

  Returns:
    A bool, possibly traced; None if there is neither a schedule nor an override.
  """
  if update_masks is not None or schedule.every is None:
    return update_masks
  return schedule.due(step)


def check_schedule(update_every: Any, start_step: Any, end_step: Any) -> UpdateSchedule:
  """Returns the schedule of mask updates that a method's arguments describe.

  Args:
    update_every: see `UpdateSchedule`; traced arguments are not checked.
    start_step: see `UpdateSchedule`.
    end_step: see `UpdateSchedule`.

  Returns:
    An `UpdateSchedule`.

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
  return UpdateSchedule(start_step, end_step, update_every)


def check_some_update(update_every: Any, start_step: Any, end_step: Any) -> Any:
  """Returns the steps up to the last mask update, and checks that there is one.

  Args:
    update_every: see `UpdateSchedule`; traced arguments are not checked.
    start_step: see `UpdateSchedule`.
    end_step: see `UpdateSchedule`.

  Returns:
    An integer; None for a schedule without an end, or with traced arguments.

  Raises:
    ValueError: the schedule ends before its first mask update, or has none.
  """
  arguments = (update_every, start_step, end_step)
  if end_step is None or any(isinstance(v, jax.Array) for v in arguments):
    return None
  if update_every is None:
    raise ValueError("update_every must be an integer of at least 1, got None.")
  if end_step < (first := start_step + update_every):
    raise ValueError(
      f"end_step must be at least start_step + update_every = {first}, got {end_step}: "
      "the masks would never change."
    )
  return (end_step - start_step) // update_every * update_every


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
