"""Turns SIGTERM and SIGINT into a flag that the loop polls."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
  """A flag that is true after a signal asked the run to stop."""

  def __init__(self):
    self.signal: signal.Signals | None = None

  def __bool__(self) -> bool:
    return self.signal is not None


@contextlib.contextmanager
def listen() -> Iterator[Stop]:
  """Catches the first SIGTERM or SIGINT; a second one has its previous effect.

  Python delivers signals to the main thread only, so in other threads this does
  nothing.

  Yields:
    A `Stop` that becomes true when a signal arrives.

  Example:
    >>> import os, signal
    >>> with listen() as stop:
    ...   os.kill(os.getpid(), signal.SIGTERM)
    ...   while not stop: pass
    >>> stop.signal.name
    'SIGTERM'
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

  def restore():
    for number, handler in before.items():
      # A handler that was not installed from Python reads as None; the system's default
      # replaces it.
      signal.signal(number, handler if handler is not None else signal.SIG_DFL)

  def handle(number, frame):
    del frame
    stop.signal = signal.Signals(number)
    restore()

  for number in before:
    signal.signal(number, handle)
  try:
    yield stop
  finally:
    restore()
