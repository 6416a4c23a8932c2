"""Data sets as arrays: the embedded digits, and what TFDS prepared."""

import importlib.util
import pathlib
from typing import Any, NamedTuple

import numpy as np

from sparsejax.training import _errors
from sparsejax.training.data import _stream, _text, _tfds_source

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10", "text")
# Read as they are needed; see `stream`.
NOT_IN_MEMORY = ("imagenet2012",)

# The split must not depend on a run's seed: seeds trained side by side share the data.
_SPLIT_SEED = 0


class Split(NamedTuple):
  """Images uint8 (n, height, width, channels) and labels int32 (n,).

  Of text: tokens uint8 (n, length) and labels int32 (n, length), what comes next.
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """Three splits, and the channel statistics of the training images.

  Attributes:
    train: what gradients are taken on; each is a `Split`, or a `stream.Stream`.
    validation: held out of the training images; may hold none.
    test: looked at once, at the end.
    num_classes: labels are below it.
    mean: float32 (1, 1, 1, channels); None for text.
    std: float32 (1, 1, 1, channels); None for text.
  """

  train: Any
  validation: Any
  test: Any
  num_classes: int
  mean: Any
  std: Any


def load(name: str, data_dir: str = "", validation_fraction: float = 0.1) -> Dataset:
  """Loads a data set into host memory, or opens a large one; never uses the network.

  The validation images are the same `round(validation_fraction * n)` whatever the seed
  of a run.

  Args:
    name: one of `NAMES`, or of `NOT_IN_MEMORY`, whose splits are `stream.Stream`.
    data_dir: see `tfds_source.read`; not used by `digits`, which is embedded.
    validation_fraction: the part of the training images held out, in [0, 1).

  Returns:
    The data set, images in uint8.

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
    )
  number = isinstance(validation_fraction, int | float)
  if not number or not 0 <= validation_fraction < 1:
    raise _errors.ConfigError(
      f"validation_fraction must be in [0, 1); got {validation_fraction}"
    )
  if name in NOT_IN_MEMORY:
    train, validation, test = _stream.load(name, data_dir, validation_fraction)
    labels, mean, std = _stream.CLASSES, _stream.MEAN, _stream.STD
    return Dataset(train, validation, test, labels, mean, std)
  if name == "text":
    first, last = _text.read()
    whole, test = Split(*_text.windows(first)), Split(*_text.windows(last))
  elif name == "digits":
    whole, test = _digits()
  else:
    whole = Split(*_tfds_source.read(name, "train", data_dir))
    test = Split(*_tfds_source.read(name, "test", data_dir))
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
  """Fills a split up to a multiple of `multiple` with black images of label -1.

  Args:
    split: n examples.
    multiple: a batch size, at least 1.

  Returns:
    A split whose length is the next multiple; evaluation passes over labels of -1.
  """
  missing = -len(split.labels) % multiple

  def filled(x, value):
    width = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
    return np.pad(x, width, constant_values=value)

  return Split(filled(split.images, 0), filled(split.labels, -1))


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel, float32 (1, 1, 1, channels).

  Exact: both come from the histogram of the 256 levels, so neither depends on an order
  of summation.
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
  """The data set with each pixel's mean and one standard deviation around them.

  Args:
    dataset: whose `mean` and `std` are each channel's.

  Returns:
    The same with `mean` float32 (1, height, width, channels) and `std` (1, 1, 1, 1).
  """
  images = dataset.train.images
  mean = images.mean(0, dtype=np.float64, keepdims=True)
  # E x^2 from the channels' statistics: the images are not copied to floats.
  squares = float(np.mean(dataset.std.astype(np.float64) ** 2 + dataset.mean**2))
  std = np.sqrt(max(squares - float((mean**2).mean()), 1e-12))
  return dataset._replace(
    mean=mean.astype(np.float32), std=np.full((1, 1, 1, 1), std, np.float32)
  )


def unit(dataset: Dataset) -> Dataset:
  """The data set with statistics that leave pixels in [0, 1]: mean 0 and std 255."""
  zeros = np.zeros((1, 1, 1, 1), np.float32)
  return dataset._replace(mean=zeros, std=zeros + 255)


def _digits() -> tuple[Split, Split]:
  """Scikit-learn's 1,797 digits of 8x8 pixels in 17 levels; a fifth is for testing."""
  table = _digits_table()
  images = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = table[:, -1].astype(np.int32)
  # The file is ordered by writer: a tail would hold other hands than the head.
  order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
  num_test = round(0.2 * len(labels))
  whole = Split(images, labels)
  return take(whole, order[num_test:]), take(whole, order[:num_test])


def _digits_table() -> np.ndarray:
  """A row a digit: 64 pixels and the label."""
  # Importing scikit-learn takes a tenth of a run on its digits, so its file is read.
  found = importlib.util.find_spec("sklearn")
  if found is not None and found.origin:
    file = pathlib.Path(found.origin).parent / "datasets/data/digits.csv.gz"
    if file.exists():
      return np.loadtxt(file, delimiter=",")
  from sklearn import datasets

  bunch: Any = datasets.load_digits()
  return np.column_stack([bunch["data"], bunch["target"]])
