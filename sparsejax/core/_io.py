"""Atomic writing and pickle-free reading of .npz files, and masks in them."""

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core._masks import pack, unpack
from sparsejax.core._tree import check_masks, named_leaves

PyTree = Any


def write_archive(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Replaces a file by arrays; a reader sees the old or the new, never a half.

  Args:
    path: of the file.
    arrays: by name; none of objects.

  Raises:
    TypeError: path is no path.
    ValueError: an array is of objects.
    OSError: it cannot be written; what was there stays.
  """
  target = _checked(path)
  folder = os.path.dirname(os.path.abspath(target))
  if os.path.isdir(target):
    raise IsADirectoryError(f"path must be a file, got the folder {target!r}.")
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"path must be in a folder that is there, got {target!r}.")
  # As `np.savez` does; the oldest numpy takes its `allow_pickle` for one more array.
  with replacing(target) as file, zipfile.ZipFile(file, "w") as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
        np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a new file that takes a path's place whole, if nothing is raised meanwhile.

  Args:
    path: of the file, in a folder that is there.

  Yields:
    The new file, to be written.

  Raises:
    OSError: it cannot be written; what was there stays.
  """
  folder, name = os.path.split(os.path.abspath(path))
  handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".tmp")
  try:
    with os.fdopen(handle, "wb") as file:
      yield file
    # `mkstemp` makes files that only their owner reads.
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def read_archive(path: str | os.PathLike, writer: str) -> dict[str, np.ndarray]:
  """Reads all arrays of a file.

  Args:
    path: of the file.
    writer: the function that writes such files, for messages.

  Returns:
    The arrays by name.

  Raises:
    TypeError: path is no path.
    FileNotFoundError: there is no such file.
    ValueError: it is no such archive, is damaged, or holds objects.

  Example:
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   write_archive(file.name, {"a": np.arange(3)})
    ...   read_archive(file.name, "write_archive")
    {'a': array([0, 1, 2])}
  """
  source = _checked(path)
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"path must be a file of {writer}, got {source!r}: no file."
    )
  try:
    # Opened here: `np.load` leaves a damaged file open.
    with open(source, "rb") as opened, zipfile.ZipFile(opened) as archive:
      arrays = {}
      for member in archive.namelist():
        with archive.open(member) as part:
          name = member.removesuffix(".npy")
          arrays[name] = np.lib.format.read_array(part, allow_pickle=False)
      return arrays
  except (
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise ValueError(
      f"path must be a file of {writer}, got {source!r}, which is none or is damaged: "
      f"{e}."
    ) from e


def _checked(path) -> str:
  if not isinstance(path, (str, os.PathLike)):
    raise TypeError(f"path must be the path of a file, got {path!r}.")
  return os.fspath(path)


def save_masks(path: str | os.PathLike, masks: PyTree) -> None:
  """Writes masks to an uncompressed .npz without pickle, one bit a weight.

  Args:
    path: of the file; it is replaced whole if it is there.
    masks: what `sj.masks` gives, or any tree of bool arrays and None.

  Raises:
    TypeError: a leaf is not bool, or path no path.
    OSError: the file cannot be written; what was there stays.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj, tempfile
    >>> masks = {"kernel": jnp.array([[True, False]]), "bias": None}
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   sj.save_masks(file.name, masks)
    ...   sj.load_masks(file.name, like=masks)
    {'bias': None, 'kernel': Array([[ True, False]], dtype=bool)}
  """
  write_archive(path, mask_arrays(masks))


def load_masks(path: str | os.PathLike, like: PyTree) -> PyTree:
  """Reads what `save_masks` wrote.

  Args:
    path: of the file.
    like: the params (or their abstract values) whose structure the masks get, or the
      masks of another state of the same network.

  Returns:
    The structure of `like` with the bool arrays of the file, and None where it has
    none; for `sj.with_masks` and `sj.apply_masks`.

  Raises:
    TypeError: path is no path.
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged or holds something else, a mask that `like` has no
      leaf for, or one of another shape.
  """
  file = read_archive(path, "save_masks")
  names = [key.removeprefix("mask:") for key in file if key.startswith("mask:")]
  whole = all(
    f"shape:{name}" in file
    and file[f"shape:{name}"].dtype == np.int64
    and file[f"shape:{name}"].ndim == 1
    and file[f"mask:{name}"].dtype == np.uint8
    for name in names
  )
  if not names or not whole:
    raise ValueError(f"path must be a file of save_masks, got {os.fspath(path)!r}.")
  bits = {name: file[f"mask:{name}"] for name in names}
  shapes = {name: tuple(file[f"shape:{name}"].tolist()) for name in names}
  leaves = named_leaves(like)
  places = {name: jnp.shape(leaf) for name, leaf in leaves}
  for name, shape in shapes.items():
    if places.get(name) != shape:
      raise ValueError(
        f"like must have a leaf of shape {shape} at {name!r}, got "
        f"{places.get(name, 'none')}."
      )
  found = {
    name: unpack(jnp.asarray(bits[name]), jax.ShapeDtypeStruct(shapes[name], bool))
    for name in names
  }
  return jax.tree.structure(like).unflatten(found.get(name) for name, _ in leaves)


def mask_arrays(masks: PyTree) -> dict[str, Any]:
  """What `save_masks` writes, for files that hold more than masks.

  Args:
    masks: as in `save_masks`.

  Returns:
    `mask:<path>`, packed bits, and `shape:<path>` of every mask.

  Raises:
    TypeError: a leaf is not bool.
  """
  check_masks(masks)
  flat = {name: jnp.asarray(mask) for name, mask in named_leaves(masks)}
  arrays = {}
  for name, bits in jax.device_get(pack(flat)).items():
    arrays[f"mask:{name}"] = bits
    arrays[f"shape:{name}"] = np.asarray(flat[name].shape, np.int64)
  return arrays
