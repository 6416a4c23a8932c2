"""Data sets that do not fit into memory, read batch by batch with grain.

Each process reads its own rows of a batch. The seed and i determine the examples of
batch number i and their crops. A resumed run therefore continues with the next batch,
and runs on any number of processes train on the same batches, with the examples within
a batch in another order.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sparsejax.training import _errors
from sparsejax.training.data import _tfds_source
from sparsejax.training.parallel import _mesh

# The mean and standard deviation of ImageNet's channels, for pixels in [0, 255].
MEAN = np.array([123.675, 116.28, 103.53], np.float32).reshape(1, 1, 1, 3)
STD = np.array([58.395, 57.12, 57.375], np.float32).reshape(1, 1, 1, 3)
CLASSES = 1000
SIZE = 224
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Stream:
  """One split whose images are not in memory; used in place of `data.Split`.

  Attributes:
    source: a random-access source of records `{"image", "label"}`.
    decode: `(record, generator or None) -> image` uint8 (size, size, 3): a random crop
      with a generator, else the center crop.
    size: height and width of the images.
  """

  source: Sequence[Any]
  decode: Callable[[Any, np.random.Generator | None], np.ndarray]
  size: int = SIZE

  @property
  def images(self) -> jax.ShapeDtypeStruct:
    """The shape and dtype of all images."""
    return jax.ShapeDtypeStruct((len(self.source), self.size, self.size, 3), np.uint8)

  @property
  def labels(self) -> range:
    """A range as long as the number of examples; it does not contain the labels."""
    return range(len(self.source))

  def batches(
    self, start: int, batch_size: int, seed: int, layout: _mesh.Layout | None
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields an endless sequence of shuffled batches, starting with number `start`.

    Args:
      start: the number of batches to skip without reading them.
      batch_size: the number of examples per batch, over all processes.
      seed: the seed of the order and the crops.
      layout: the mesh over which a batch is sharded; None for one device.

    Yields:
      images uint8 (batch_size, size, size, 3) and labels int32 (batch_size,).
    """
    # Slow to import, and only this kind of data set needs it.
    import grain

    first, last = (0, batch_size)
    if layout is not None:
      first, last = _mesh.local_rows(layout, batch_size)
    # This process reads the examples start * batch_size + first // rows + k parts.
    rows = last - first
    parts = batch_size // rows

    def load(record, rng):
      return {"image": self.decode(record, rng), "label": np.int32(record["label"])}

    examples: Any = grain.MapDataset.source(self.source).seed(seed).shuffle()
    # The crop is drawn before the slice, so that it depends on an example's position in
    # the whole order and not on the number of processes.
    examples = examples.repeat(None).random_map(load)
    cut = slice(start * batch_size + first // rows, None, parts)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * rows)
    for batch in examples.slice(cut).to_iter_dataset(options).batch(rows):
      yield _place(batch["image"], batch["label"], batch_size, layout)

  def in_order(
    self, batch_size: int, layout: _mesh.Layout | None
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields every example once, in order; the last batch is padded with labels of -1.

    Args:
      batch_size: the number of examples per batch, over all processes.
      layout: the mesh over which a batch is sharded; None for one device.

    Yields:
      images uint8 (batch_size, size, size, 3) and labels int32 (batch_size,).
    """
    first, last = (0, batch_size)
    if layout is not None:
      first, last = _mesh.local_rows(layout, batch_size)
    blank = np.zeros((self.size, self.size, 3), np.uint8)
    for start in range(0, len(self.source), batch_size):
      images, labels = [], []
      for i in range(start + first, start + last):
        inside = i < len(self.source)
        record = self.source[i] if inside else None
        images.append(blank if record is None else self.decode(record, None))
        labels.append(-1 if record is None else record["label"])
      yield _place(np.stack(images), np.array(labels, np.int32), batch_size, layout)


def load(
  name: str, data_dir: str = "", validation_fraction: float = 0.1, size: int = SIZE
) -> tuple[Stream, Stream, Stream]:
  """Opens a data set prepared by TFDS without reading its examples.

  Args:
    name: a data set with the splits `train` and `validation`, such as
      `"imagenet2012"`; its `validation` is the test split here.
    data_dir: see `_tfds_source.read`.
    validation_fraction: the fraction of the training examples to hold out; these are
      the last ones.
    size: height and width of the images.

  Returns:
    The training, validation and test splits.

  Raises:
    DatasetNotFoundError: if the data set is not on this machine, or cannot be opened.
  """
  directory = _tfds_source.find(name, data_dir)
  # Slow to import.
  import tensorflow_datasets as tfds

  builder: Any = tfds.builder_from_directory(directory)
  number = builder.info.splits["train"].num_examples
  cut = number - round(validation_fraction * number)
  splits = (f"train[:{cut}]", f"train[{cut}:]", "validation")
  try:
    sources: list[Any] = [
      builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
      for split in splits
    ]
  except Exception as e:
    raise _errors.DatasetNotFoundError(
      f"the data set in {directory} cannot be opened ({type(e).__name__}: {e})"
    ) from e
  train, validation, test = (Stream(s, decoder(size), size) for s in sources)
  return train, validation, test


def decoder(size: int) -> Callable[[Any, np.random.Generator | None], np.ndarray]:
  """Returns a function that decodes a record's JPEG, crops and resizes it.

  With a generator, it crops a random window of 8 to 100 % of the area with an aspect
  ratio of 3:4 to 4:3, and mirrors it with probability one half. Without, it crops the
  central square whose side is 7/8 of the shorter side.

  Args:
    size: height and width of the decoded image.

  Returns:
    `(record, generator or None) -> uint8 (size, size, 3)`.

  References:
    Szegedy et al. 2015, "Going deeper with convolutions", section 6.
  """
  from PIL import Image

  # A random window is drawn up to ten times until it fits into the image; else the
  # largest central square is taken.
  def window(width, height, rng):
    for _ in range(10):
      area = width * height * rng.uniform(0.08, 1.0)
      ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
      w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left = int(rng.integers(0, width - w + 1))
        top = int(rng.integers(0, height - h + 1))
        return left, top, left + w, top + h
    return middle(width, height, 1.0)

  def middle(width, height, share):
    side = max(round(share * min(width, height)), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side

  def decode(record, rng):
    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
    box = middle(*image.size, 7 / 8) if rng is None else window(*image.size, rng)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(resized, np.uint8)
    return pixels[:, ::-1] if rng is not None and rng.random() < 0.5 else pixels

  return decode


def _place(images, labels, batch_size: int, layout: _mesh.Layout | None):
  """Makes device arrays of a batch from the rows of this process."""
  if layout is None:
    return _mesh.place((images, labels))
  return tuple(
    jax.make_array_from_process_local_data(
      layout.batch, np.ascontiguousarray(x), (batch_size, *x.shape[1:])
    )
    for x in (images, labels)
  )
