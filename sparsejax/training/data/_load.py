"""Loads data sets: scikit-learn's digits, Python's help text, and those of TFDS."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import did_you_mean
from sparsejax.training import _errors
from sparsejax.training.data import _stream, _text, _tfds_source

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "text")
# These are read batch by batch; see `_stream`.
NOT_IN_MEMORY = ("imagenet2012",)

# The split does not depend on a run's seed, because seeds trained together share data.
_SPLIT_SEED = 0


class Split(NamedTuple):
  """Images uint8 (n, height, width, channels) and labels int32 (n,).

  For text: tokens uint8 (n, length) and labels int32 (n, length), the next tokens.
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """Three splits and the statistics of the training images.

  Each split is a `Split`, or a `Stream`.

  Attributes:
    train: the training examples.
    validation: examples held out of the training images; may be empty.
    test: the test examples, evaluated once, at the end.
    num_classes: the number of classes; labels are below it.
    mean: float32 (1, 1, 1, channels), or per pixel after `centered`; None for text.
    std: float32 (1, 1, 1, channels), or one number after `centered`; None for text.
  """

  train: Any
  validation: Any
  test: Any
  num_classes: int
  mean: Any
  std: Any

  def normalize(self, images: Any) -> jax.Array:
    """Normalizes images by the statistics of the training images.

    (x - mean) (1 / std), in float32; tokens of a text are cast to int32

    Args:
      images: uint8 (n, height, width, channels); or tokens, uint8 (n, length).

    Returns:
      float32 (n, height, width, channels); or int32 (n, length).
    """
    images = jnp.asarray(images)
    if self.mean is None:
      return images.astype(jnp.int32)
    return (images.astype(jnp.float32) - self.mean) * (1 / self.std)


def load(
  name: str,
  data_dir: str = "",
  validation_fraction: float = 0.1,
  image_size: int = _stream.SIZE,
) -> Dataset:
  """Loads a data set into host memory, or opens a large one as streams.

  It never uses the network. The `round(validation_fraction * n)` validation images do
  not depend on the seed of a run.

  Args:
    name: one of `NAMES`, or of `NOT_IN_MEMORY`, whose splits are `Stream`.
    data_dir: see `_tfds_source.read`; not used by `digits` and `text`, which need no
      files of TFDS.
    validation_fraction: the fraction of the training images to hold out, in [0, 1).
    image_size: the height and width of the images of a stream; others keep theirs.

  Returns:
    The data set, with uint8 images.

  Raises:
    ConfigError: if an argument breaks its rule.
    DatasetNotFoundError: if the data set is not on this machine.

  Example:
    >>> [split.images.shape for split in load("digits")[:3]]
    [(1294, 8, 8, 1), (144, 8, 8, 1), (359, 8, 8, 1)]
  """
  known = (*NAMES, *NOT_IN_MEMORY)
  if name not in known:
    raise _errors.ConfigError(
      f"dataset must be one of {', '.join(known)}; got {name!r}"
      + did_you_mean(name, known)
    )
  number = isinstance(validation_fraction, int | float)
  if not number or not 0 <= validation_fraction < 1:
    raise _errors.ConfigError(
      f"validation_fraction must be in [0, 1); got {validation_fraction}"
    )
  if name in NOT_IN_MEMORY:
    splits = _stream.load(name, data_dir, validation_fraction, image_size)
    train, validation, test = splits
    labels, mean, std = _stream.CLASSES, _stream.MEAN, _stream.STD
    return Dataset(train, validation, test, labels, mean, std)
  # Training examples before the validation split, and test examples.
  if name == "text":
    first, last = _text.read()
    whole, test = Split(*_text.windows(first)), Split(*_text.windows(last))
  elif name == "digits":
    whole, test = _digits()
  else:
    whole = Split(*_tfds_source.read(name, "train", data_dir))
    test = Split(*_tfds_source.read(name, "test", data_dir))
  # Hold out a random part of the training examples.
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(whole.labels))
  held_out = round(validation_fraction * len(order))
  if held_out == len(order):
    raise _errors.ConfigError(
      f"validation_fraction must leave images to train on; got {validation_fraction}"
    )
  train, validation = take(whole, order[held_out:]), take(whole, order[:held_out])
  if name == "text":
    return Dataset(train, validation, test, _text.CLASSES, None, None)
  mean, std = statistics(train.images)
  return Dataset(train, validation, test, int(whole.labels.max()) + 1, mean, std)


def take(split: Split, indices: np.ndarray) -> Split:
  """Returns the examples at `indices`."""
  return Split(split.images[indices], split.labels[indices])


def pad(split: Split, multiple: int) -> Split:
  """Pads a split with black images of label -1 to a multiple of a batch size.

  Args:
    split: n examples.
    multiple: the batch size, at least 1.

  Returns:
    A split whose length is the next multiple; evaluation ignores labels of -1.
  """
  missing = -len(split.labels) % multiple

  def filled(x, value):
    width = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
    return np.pad(x, width, constant_values=value)

  return Split(filled(split.images, 0), filled(split.labels, -1))


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and standard deviation per channel, float32 (1, 1, 1, channels).

  Both are computed from exact counts of the 256 levels, so they do not depend on the
  order of the images.
  """
  levels = np.arange(256, dtype=np.float64)
  channels = np.moveaxis(images, -1, 0)
  counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
  frequencies = counts / counts.sum(axis=1, keepdims=True)
  mean = frequencies @ levels
  std = np.sqrt(np.maximum(frequencies @ levels**2 - mean**2, 1e-12))
  shape = (1, 1, 1, -1)
  return mean.astype(np.float32).reshape(shape), std.astype(np.float32).reshape(shape)


def centered(dataset: Dataset) -> Dataset:
  """Returns a data set with the mean per pixel and one standard deviation around it.

  Args:
    dataset: a data set with `mean` and `std` per channel, in memory.

  Returns:
    The same data set with `mean` float32 (1, height, width, channels) and `std`
    float32 (1, 1, 1, 1).
  """
  images = dataset.train.images
  mean = images.mean(0, dtype=np.float64, keepdims=True)
  # E x^2 from the statistics per channel, which saves a copy of the images as floats.
  squares = float(np.mean(dataset.std.astype(np.float64) ** 2 + dataset.mean**2))
  std = np.sqrt(max(squares - float((mean**2).mean()), 1e-12))
  return dataset._replace(
    mean=mean.astype(np.float32), std=np.full((1, 1, 1, 1), std, np.float32)
  )


def unit(dataset: Dataset) -> Dataset:
  """Returns a data set with mean 0 and std 255, which scales pixels to [0, 1]."""
  zeros = np.zeros((1, 1, 1, 1), np.float32)
  return dataset._replace(mean=zeros, std=zeros + 255)


# By the values of the config field `centering`.
CENTERINGS: dict[str, Callable[[Dataset], Dataset]] = {
  "channel": lambda dataset: dataset,
  "pixel": centered,
  "none": unit,
}


def _digits() -> tuple[Split, Split]:
  """Returns scikit-learn's 1,797 digits, 8x8 pixels of 17 levels; a fifth is test."""
  table = _digits_table()
  images = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = table[:, -1].astype(np.int32)
  # The file is ordered by writer, so the split must be random.
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
  num_test = round(0.2 * len(labels))
  whole = Split(images, labels)
  return take(whole, order[num_test:]), take(whole, order[:num_test])


def _digits_table() -> np.ndarray:
  """Returns one row per digit: 64 pixels and the label."""
  # Reads scikit-learn's file, because importing scikit-learn takes a tenth of the time
  # of a run on its digits.
  found = importlib.util.find_spec("sklearn")
  if found is not None and found.origin:
    file = pathlib.Path(found.origin).parent / "datasets/data/digits.csv.gz"
    if file.exists():
      return np.loadtxt(file, delimiter=",")
  from sklearn import datasets

  bunch: Any = datasets.load_digits()
  return np.column_stack([bunch["data"], bunch["target"]])
