"""What a run shows while it goes on: a bar in a terminal, lines elsewhere."""

import time
from typing import Any

import rich.console
import rich.progress

# Elsewhere than in a terminal a line comes at most this often, in seconds.
_PAUSE = 2.0
# After so many mask updates that changed nothing, it is said.
_DUE = 10


class Progress:
  """Shows steps done, loss, accuracy, density, speed and the time left.

  Args:
    total: steps of the whole run.
    done: steps done before.
    verbose: whether to show anything.
    console: where to; standard error by default, which leaves standard output to the
      result.
  """

  def __init__(
    self,
    total: int,
    done: int,
    verbose: bool = True,
    console: rich.console.Console | None = None,
  ):
    self._console = console or rich.console.Console(stderr=True, quiet=not verbose)
    self._total, self._step, self._last_step = total, done, done
    self._last_time = time.monotonic()
    self._since: tuple[int, float] | None = None
    self._last_line = -_PAUSE
    self._speed = 0.0
    self._fields: dict[str, str] = {}
    self._said: set[str] = set()
    self._bar = None
    if self._console.is_terminal or self._console.is_jupyter:
      column = rich.progress.TextColumn
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=None),
        column("{task.percentage:.0f}%"),
        column("[dim]loss[/] {task.fields[loss]}"),
        column("[dim]accuracy[/] [green]{task.fields[accuracy]}[/]"),
        column("[dim]density[/] [cyan]{task.fields[density]}[/]"),
        column("{task.fields[speed]} [dim]steps/s[/]"),
        column("[yellow]{task.fields[short]}[/] [dim]left[/]"),
        console=self._console,
        expand=True,
      )
      self._task = self._bar.add_task(
        "", total=total, completed=done, **self._shown(done)
      )

  def __enter__(self) -> "Progress":
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *error: Any) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._fields and error[0] is None:
      self._line()

  def update(self, step: int, **fields: str) -> float:
    """Shows where the run is.

    Args:
      step: updates done so far.
      **fields: `loss`, `accuracy` (on held-out images; without it `train_accuracy`)
        and `density`, ready to be shown; one that is not given stays.

    Returns:
      Steps a second since the last call that moved on.
    """
    now = time.monotonic()
    if step > self._last_step:
      self._speed = (step - self._last_step) / max(now - self._last_time, 1e-9)
      self._last_step, self._last_time = step, now
      if self._since is None:
        # The first part is spent on compilation and says nothing of the others.
        self._since = step, now
    self._step = step
    self._fields.update(fields)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, **self._shown(step))
    elif now - self._last_line >= _PAUSE:
      self._line()
    return self._speed

  def skipped(self, steps: int, mask_updates: int) -> None:
    """Says it when something was not finite for the first time.

    Args:
      steps: skipped so far, because their gradient was not finite.
      mask_updates: skipped so far, because a score was not.
    """
    for count, what in (
      (steps, "A step was skipped: its gradient was not finite."),
      (mask_updates, "A mask update was skipped: a score was not finite."),
    ):
      if count and what not in self._said:
        self._said.add(what)
        self.note(f"Warning: {what} The summary counts them.")

  def unmoved(self, due: int) -> None:
    """Warns once if no mask has changed though many mask updates were due.

    Args:
      due: mask updates that were due in this run, none of which changed a mask.
    """
    what = "never moved"
    if due >= _DUE and what not in self._said:
      self._said.add(what)
      self.note(
        f"Warning: {due:,} mask updates were due and no mask ever moved. Updates whose"
        " scores were not finite are counted in skipped_mask_updates; otherwise look at"
        " the drop fraction and the scores."
      )

  def note(self, message: str) -> None:
    """Shows a message that stays."""
    self._console.print(message, highlight=False, markup=False, soft_wrap=True)

  def _line(self) -> None:
    shown = self._shown(self._step)
    line = (
      f"step {self._step:>6,}/{self._total:,}  loss {shown['loss']}"
      f"  accuracy {shown['accuracy']}  density {shown['density']}"
      f"  {shown['speed']} steps/s  {shown['left']} left"
    )
    self._last_line = time.monotonic()
    self._console.print(line, highlight=False, soft_wrap=True)

  def _shown(self, step: int) -> dict[str, Any]:
    left = None
    if self._since is not None and step > self._since[0]:
      # Over the whole run, not the last steps, so that the number is calm.
      speed = (step - self._since[0]) / (time.monotonic() - self._since[1])
      left = (self._total - step) / speed
    return {
      "loss": "-",
      "accuracy": self._fields.get("train_accuracy", "-"),
      "density": "-",
      **self._fields,
      "speed": f"{self._speed:,.0f}" if self._speed else "-",
      "left": "-" if left is None else duration(left),
      # All of it has to stand in a terminal of 80 columns.
      "short": "-"
      if left is None
      else duration(left).replace(" ", "").replace("in", ""),
    }


def duration(seconds: float) -> str:
  """Writes a time span for people.

  Args:
    seconds: at least 0.

  Returns:
    Such as `12 s`, `3 min 05 s` or `2 h 07 min`.

  Example:
    >>> duration(12.3), duration(185), duration(7620)
    ('12 s', '3 min 05 s', '2 h 07 min')
  """
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60:02d} s"
  return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
