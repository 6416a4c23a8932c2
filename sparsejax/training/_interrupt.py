"""Turns SIGTERM and SIGINT into a flag that the loop polls."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator


class Stop:
  """A flag that is true after a signal asked the run to stop.

  Attributes:
    signal: the signal, or None.
    note: `(message)`, which a thread calls as soon as the first signal arrives, even
      while a compiled program runs; the flag becomes true when it returns to Python.
  """

  def __init__(self):
    self.signal: signal.Signals | None = None
    self.note: Callable[[str], object] = lambda message: None

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
  caught = signal.SIGTERM, signal.SIGINT
  before = {s: (signal.getsignal(s), _native_action(s)) for s in caught}

  def restore():
    for number, (handler, native) in before.items():
      signal.signal(number, handler if callable(handler) else signal.SIG_DFL)
      # A handler that was not installed from Python, such as that of jax.distributed,
      # reads as None or as the default.
      if not callable(handler) and native is not None:
        _libc().sigaction(number, native, None)

  def handle(number, frame):
    del frame
    stop.signal = signal.Signals(number)
    restore()

  for number in before:
    signal.signal(number, handle)
  try:
    with _announced(stop, caught):
      yield stop
  finally:
    restore()


@contextlib.contextmanager
def _announced(stop: Stop, caught: tuple[signal.Signals, ...]) -> Iterator[None]:
  """Calls `stop.note` from a thread as soon as one of the signals arrives.

  The main thread cannot: it runs handlers between two instructions of Python only. But
  the system's handler writes the signal's number to the wakeup descriptor at once.
  """
  reader, writer = socket.socketpair()
  writer.setblocking(False)

  def wait():
    while received := reader.recv(1):
      if received[0] in caught:
        name = signal.Signals(received[0]).name
        stop.note(f"{name} received: stopping after this step.")
        return

  thread = threading.Thread(target=wait, daemon=True)
  thread.start()
  before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    writer.close()  # ends the thread
    thread.join()
    reader.close()


def _native_action(number: signal.Signals) -> "ctypes.Array | None":
  """Returns the system's `struct sigaction` of a signal; None if there is none."""
  if os.name != "posix":
    return None
  action = ctypes.create_string_buffer(1024)  # longer than the struct of any system
  return action if _libc().sigaction(number, None, action) == 0 else None


def _libc() -> ctypes.CDLL:
  return ctypes.CDLL(None)
