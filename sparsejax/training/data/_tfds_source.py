"""Reads image data sets prepared by TFDS, without TensorFlow, and caches them."""

import hashlib
import io
import json
import os
import pathlib
import warnings
import zipfile
from typing import Any

import numpy as np

from sparsejax.core import replacing
from sparsejax.training import _errors

_BATCH = 1000  # records read at once


def read(name: str, split: str, data_dir: str = "") -> tuple[np.ndarray, np.ndarray]:
  """Reads all images and labels of one split, from the cache if they are in it.

  Args:
    name: a data set of TFDS with an `image` and a `label`, such as `"mnist"`.
    split: `"train"` or `"test"`.
    data_dir: TFDS's folder of data sets. If empty, the environment variable
      `TFDS_DATA_DIR`, and without it TFDS's default, `~/tensorflow_datasets`.

  Returns:
    images uint8 (n, height, width, channels) and labels int32 (n,), in the order in
    which TFDS stored them.

  Raises:
    DatasetNotFoundError: if the data set does not exist, cannot be read, or is in
      another file format than array_record. It is never downloaded.
  """
  directory = find(name, data_dir)
  cached = cache_dir() / f"{name}-{split}-{_fingerprint(directory)}.npz"
  arrays = _read_cache(cached)
  if arrays is None:
    arrays = _decode(directory, split)
    _write_cache(cached, arrays)
  return arrays


def find(name: str, data_dir: str = "") -> pathlib.Path:
  """Returns the folder `<data_dir>/<name>/<version>` of the newest version.

  Args:
    name: the data set.
    data_dir: as in `read`.

  Returns:
    An existing folder with a data set in the array_record format.

  Raises:
    DatasetNotFoundError: if there is none; says where it was searched and how to
      prepare it.
  """
  root_, source = root(data_dir)
  help_ = (
    f"Prepare it once with `python scripts/prepare_data.py {name} --data_dir={root_}`"
    " (which downloads it), or point"
    " --config.data_dir or TFDS_DATA_DIR at a TFDS folder that holds it. Without any"
    " download there is --config=configs/digits.py."
  )
  versions = [p.parent for p in (root_ / name).glob("*/dataset_info.json")]
  if not versions:
    raise _errors.DatasetNotFoundError(
      f"data set {name!r} is not in {root_} ({source}): there is no"
      f" {name}/<version>/dataset_info.json. {help_}"
    )
  newest = max(versions, key=_version)
  info = json.loads((newest / "dataset_info.json").read_text())
  if info.get("fileFormat") != "array_record":
    raise _errors.DatasetNotFoundError(
      f"data set {name!r} in {newest} must be in the file format 'array_record',"
      f" the one that is read without TensorFlow; it is in"
      f" {info.get('fileFormat', 'tfrecord')!r}. {help_}"
    )
  return newest


def root(data_dir: str = "") -> tuple[pathlib.Path, str]:
  """Returns TFDS's folder of data sets, and the setting that determines it.

  Args:
    data_dir: as in `read`.

  Returns:
    `(path, source)`; the path need not exist. The source is a text for messages.
  """
  if data_dir:
    return pathlib.Path(data_dir).expanduser(), "data_dir"
  if os.environ.get("TFDS_DATA_DIR"):
    directory = pathlib.Path(os.environ["TFDS_DATA_DIR"]).expanduser()
    return directory, "the environment variable TFDS_DATA_DIR"
  return pathlib.Path.home() / "tensorflow_datasets", "TFDS's default"


def cache_dir() -> pathlib.Path:
  """Returns the folder in which decoded data sets are cached.

  It is `SPARSEJAX_CACHE_DIR` if that is set, else `sparsejax` in `XDG_CACHE_HOME` or
  `~/.cache`.
  """
  if os.environ.get("SPARSEJAX_CACHE_DIR"):
    return pathlib.Path(os.environ["SPARSEJAX_CACHE_DIR"]).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "sparsejax"


def _version(directory: pathlib.Path) -> tuple[int, ...]:
  return tuple(int(n) for n in directory.name.split(".") if n.isdigit())


def _fingerprint(directory: pathlib.Path) -> str:
  """Returns a hash of the files' names, sizes and times, new if the data changes."""
  stats = sorted(
    (p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in directory.iterdir()
  )
  return hashlib.sha256(repr((str(directory.resolve()), stats)).encode()).hexdigest()[
    :16
  ]


def _decode(directory: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Decodes all images and labels of a split."""
  # TFDS is slow to import and not needed when the cache has the data.
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(directory)
    # Images are decoded here with Pillow. TFDS would use OpenCV if it is installed, and
    # the two differ by a few levels on JPEG.
    source: Any = builder.as_data_source(
      split=split,  # pyright: ignore[reportCallIssue]
      decoders={"image": tfds.decode.SkipDecoding()},
    )
    starts = range(0, len(source), _BATCH)
    ranges = [range(s, min(s + _BATCH, len(source))) for s in starts]
    # Without threads, which bring no speed-up for images this small.
    parts = [_decode_records(source.__getitems__(r)) for r in ranges]
  except Exception as e:
    raise _errors.DatasetNotFoundError(
      f"the {split} split of the data set in {directory} cannot be read"
      f" ({type(e).__name__}: {e}); delete the folder and prepare the data set again"
      " with scripts/prepare_data.py"
    ) from e
  images, labels = zip(*parts, strict=True)
  return np.concatenate(images), np.concatenate(labels)


def _decode_records(records) -> tuple[np.ndarray, np.ndarray]:
  from PIL import Image

  images = [np.asarray(Image.open(io.BytesIO(r["image"]))) for r in records]
  stacked = np.stack(images)
  if stacked.ndim == 3:  # gray images have no channel axis
    stacked = stacked[..., None]
  return stacked, np.array([r["label"] for r in records], np.int32)


def _read_cache(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns cached images and labels; None if the file is absent or damaged."""
  try:
    # Opened here, because `np.load` does not close a damaged file.
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
      images, labels = file["images"], file["labels"]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None  # absent or damaged; the data are decoded again
  if images.dtype != np.uint8 or labels.dtype != np.int32:
    return None
  return images, labels


def _write_cache(path: pathlib.Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
  """Writes decoded data to the cache, so that readers see complete files only."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
      np.savez(file, images=arrays[0], labels=arrays[1])
  except OSError as e:
    warnings.warn(
      f"decoded data could not be cached in {path.parent} ({e}); the next run decodes"
      " it again. Set SPARSEJAX_CACHE_DIR to a folder that can be written.",
      stacklevel=2,
    )
