"""A progress bar on standard error: pruned layers, the last error and the time left."""

import sys
import time


class Bar:
  """Shows the progress of a pruning: one line in a terminal, else one line per layer.

  Args:
    total: the number of layers.
    show: whether to show anything.
  """

  def __init__(self, total: int, show: bool):
    self.total, self.show = total, show
    self.done, self.fresh, self.start = 0, 0, time.monotonic()

  def advance(self, report, resumed: bool = False) -> None:
    """Shows one more layer.

    Args:
      report: the layer's `LayerReport`.
      resumed: whether the layer was read from the directory of an earlier run.
    """
    self.done += 1
    self.fresh += not resumed
    if not self.show:
      return
    spent = time.monotonic() - self.start
    left = spent / max(self.fresh, 1) * (self.total - self.done)
    filled = 20 * self.done // self.total
    text = (
      f"[{'#' * filled}{'.' * (20 - filled)}] {self.done}/{self.total} {report.name} "
      f"density {report.density:.3f} error {report.error:.4f}, {left:.0f} s left"
    )
    terminal = sys.stderr.isatty()
    end = "\n" if not terminal or self.done == self.total else ""
    print(f"\r\033[K{text}" if terminal else text, end=end, file=sys.stderr, flush=True)
