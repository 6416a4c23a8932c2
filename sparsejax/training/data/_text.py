"""Text that every Python has: the reference behind `help()`, as windows of bytes."""

import numpy as np

LENGTH = 64  # bytes of a window
CLASSES = 256


def read() -> tuple[np.ndarray, np.ndarray]:
  """Returns Python's own language reference, by topics, as bytes.

  It ships with Python (module `pydoc_data.topics`, 0.7 MB of English and code) and
  differs a little from one version to the next, so figures on it name the version.

  Returns:
    Two uint8 arrays: the first nine tenths, and the last tenth, to test on.
  """
  # Large, and only this data set needs it.
  from pydoc_data import topics

  text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
  whole = np.frombuffer(text.encode(), np.uint8)
  cut = len(whole) * 9 // 10
  return whole[:cut], whole[cut:]


def windows(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a text into windows, each with the bytes that follow its own.

  Args:
    text: uint8 (bytes,).

  Returns:
    tokens uint8 (n, LENGTH) and labels int32 (n, LENGTH), the byte after each; the
    windows lie end to end, and what is left over is dropped.

  Example:
    >>> tokens, labels = windows(np.arange(129, dtype=np.uint8))
    >>> tokens.shape, int(tokens[1, 0]), int(labels[0, 63])
    ((2, 64), 64, 64)
  """
  n = (len(text) - 1) // LENGTH
  tokens = text[: n * LENGTH].reshape(n, LENGTH)
  labels = text[1 : n * LENGTH + 1].reshape(n, LENGTH)
  return tokens, labels.astype(np.int32)
