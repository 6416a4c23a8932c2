"""The text behind Python's `help()`, as windows of bytes; needs no download."""

import numpy as np

LENGTH = 64  # bytes per window
CLASSES = 256


def read() -> tuple[np.ndarray, np.ndarray]:
  """Returns the topics of Python's language reference as bytes.

  They are part of Python (module `pydoc_data.topics`, 0.7 MB of English and code) and
  differ slightly between versions, so results must name the version.

  Returns:
    Two uint8 arrays: the first nine tenths for training, and the last tenth for
    testing.
  """
  # Imported here, because it is large and only this data set needs it.
  from pydoc_data import topics

  text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
  whole = np.frombuffer(text.encode(), np.uint8)
  cut = len(whole) * 9 // 10
  return whole[:cut], whole[cut:]


def windows(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Splits a text into consecutive windows, with the next byte as each byte's label.

  Args:
    text: uint8 (bytes,).

  Returns:
    tokens uint8 (n, LENGTH) and labels int32 (n, LENGTH), n = (bytes - 1) // LENGTH.
    The remaining bytes are dropped.

  Example:
    >>> tokens, labels = windows(np.arange(129, dtype=np.uint8))
    >>> tokens.shape, int(tokens[1, 0]), int(labels[0, 63])
    ((2, 64), 64, 64)
  """
  n = (len(text) - 1) // LENGTH
  tokens = text[: n * LENGTH].reshape(n, LENGTH)
  labels = text[1 : n * LENGTH + 1].reshape(n, LENGTH)
  return tokens, labels.astype(np.int32)
