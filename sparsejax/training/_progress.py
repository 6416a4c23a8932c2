"""Shows the progress of a run: a bar in a terminal, lines elsewhere."""

import time
from typing import Any

import rich.console
import rich.progress

# Outside a terminal, the least time between two lines, in seconds.
_PAUSE = 2.0
# The fields of a line, in their order.
_LABELS = {
  "loss": "train loss",
  "train_accuracy": "train accuracy",
  "validation_accuracy": "validation accuracy",
  "density": "density",
}
# The number of mask updates without any change after which to warn.
_DUE = 10


class Progress:
  """Shows steps done, loss, accuracies, density, speed and the time left.

  Args:
    total: steps of the whole run.
    done: steps done before this call.
    verbose: whether to show anything.
    console: the console to print to; by default standard error, so that standard output
      contains the result only.
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
    self._printed: tuple[int, dict[str, str]] | None = None
    self._said: set[str] = set()
    self._bar = None
    if self._console.is_terminal or self._console.is_jupyter:
      column = rich.progress.TextColumn
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=None),
        column("{task.percentage:.0f}%"),
        column("[dim]train loss[/] {task.fields[loss]}"),
        column("[dim]{task.fields[split]}[/] [green]{task.fields[accuracy]}[/]"),
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
    elif self._fields and error[0] is None and self._printed != self._state():
      self._line()

  def update(self, step: int, hold: bool = False, **fields: str) -> float:
    """Shows the current step and its numbers.

    Args:
      step: updates done so far.
      hold: whether another call for this step follows, with further numbers. Outside a
        terminal, no line is printed then.
      **fields: `loss` and `train_accuracy` (on the last training batches),
        `validation_accuracy` and `density`, formatted. A field that is not given keeps
        its value.

    Returns:
      Steps per second, between the last two calls with an increased step.
    """
    now = time.monotonic()
    if step > self._last_step:
      self._speed = (step - self._last_step) / max(now - self._last_time, 1e-9)
      self._last_step, self._last_time = step, now
      if self._since is None:
        # The time left is estimated from here: the steps before include compilation.
        self._since = step, now
    self._step = step
    self._fields.update(fields)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, **self._shown(step))
    elif not hold and now - self._last_line >= _PAUSE:
      self._line()
    return self._speed

  def skipped(self, steps: int, mask_updates: int) -> None:
    """Warns once per kind if steps or mask updates were skipped.

    Args:
      steps: steps skipped so far because the gradient was not finite.
      mask_updates: mask updates skipped so far because a score was not finite.
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
      due: the number of mask updates that were due, none of which changed a mask.
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
    """Prints a message above the bar."""
    self._console.print(message, highlight=False, markup=False, soft_wrap=True)

  def _line(self) -> None:
    shown = self._shown(self._step)
    parts = [f"step {self._step:>6,}/{self._total:,}"]
    parts += [
      f"{label} {self._fields[name]}"
      for name, label in _LABELS.items()
      if name in self._fields
    ]
    parts += [f"{shown['speed']} steps/s", f"{shown['left']} left"]
    self._last_line, self._printed = time.monotonic(), self._state()
    self._console.print("  ".join(parts), highlight=False, soft_wrap=True)

  def _state(self) -> tuple[int, dict[str, str]]:
    """Returns what a line shows of the run, without speed and time."""
    return self._step, dict(self._fields)

  def _shown(self, step: int) -> dict[str, Any]:
    """Returns the texts of the bar's and the line's columns."""
    left = None
    if self._since is not None and step > self._since[0]:
      # The mean speed since compilation, which fluctuates less than the current one.
      speed = (step - self._since[0]) / (time.monotonic() - self._since[1])
      left = (self._total - step) / speed
    # The bar has room for one accuracy.
    evaluated = "validation_accuracy" in self._fields
    return {
      "loss": self._fields.get("loss", "-"),
      "split": "valid." if evaluated else "train",
      "accuracy": self._fields.get(
        "validation_accuracy" if evaluated else "train_accuracy", "-"
      ),
      "density": self._fields.get("density", "-"),
      "speed": f"{self._speed:,.0f}" if self._speed else "-",
      "left": "-" if left is None else duration(left),
      # The bar must fit into a terminal of 80 columns.
      "short": "-"
      if left is None
      else duration(left).replace(" ", "").replace("in", ""),
    }


def duration(seconds: float) -> str:
  """Formats a time span.

  Args:
    seconds: the time span, at least 0.

  Returns:
    A text such as `12 s`, `3 min 05 s` or `2 h 07 min`.

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
