"""Atomic writing and pickle-free reading of .npz files, and of masks in them."""

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

from sparsejax.core._checks import shown
from sparsejax.core._masks import pack, unpack
from sparsejax.core._tree import check_masks, named_leaves

PyTree = Any


def write_archive(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays to an .npz file atomically.

  A reader gets the old file or the new one, never a part of it.

  Args:
    path: the file's path.
    arrays: the arrays by name; none may have the object dtype.

  Raises:
    TypeError: `path` is not a path.
    ValueError: an array has the object dtype.
    OSError: the file cannot be written; an existing file is unchanged.
  """
  target = check_path(path)
  folder = os.path.dirname(os.path.abspath(target))
  if os.path.isdir(target):
    raise IsADirectoryError(f"path must be a file, got the folder {target!r}.")
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"path must be in a folder that is there, got {target!r}.")
  # Writes the format of `np.savez`, which in old versions of numpy has no argument
  # `allow_pickle` and would save it as one more array.
  with replacing(target) as file, zipfile.ZipFile(file, "w") as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
        np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that replaces `path` if the block raises nothing.

  Args:
    path: the file's path, in an existing folder.

  Yields:
    The temporary file, open for writing bytes.

  Raises:
    OSError: the file cannot be written; an existing file is unchanged.
  """
  folder, name = os.path.split(os.path.abspath(path))
  handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".tmp")
  try:
    with os.fdopen(handle, "wb") as file:
      yield file
    # `mkstemp` makes files that only their owner can read.
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def read_archive(path: str | os.PathLike, writer: str) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz file, without pickle.

  Args:
    path: the file's path.
    writer: the name of the function that writes such files, for error messages.

  Returns:
    The arrays by name.

  Raises:
    TypeError: `path` is not a path.
    FileNotFoundError: there is no such file.
    ValueError: the file is not such an archive, is damaged, or has an array of the
      object dtype.

  Example:
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   write_archive(file.name, {"a": np.arange(3)})
    ...   read_archive(file.name, "write_archive")
    {'a': array([0, 1, 2])}
  """
  source = check_path(path)
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"path must be a file of {writer}, got {source!r}: no file."
    )
  try:
    # Opened here, because `np.load` does not close a damaged file.
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


def check_path(path: Any) -> str:
  """Returns a path as text, or raises TypeError."""
  if not isinstance(path, (str, os.PathLike)):
    raise TypeError(f"path must be the path of a file, got {shown(path)}.")
  return os.fspath(path)


def save_masks(path: str | os.PathLike, masks: PyTree) -> None:
  """Writes masks to an uncompressed .npz file without pickle, one bit per weight.

  Args:
    path: the file's path; an existing file is replaced atomically.
    masks: the result of `sj.masks`, or any tree of bool arrays and None.

  Raises:
    TypeError: a leaf is not bool, or `path` is not a path.
    OSError: the file cannot be written; an existing file is unchanged.

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
  """Reads masks that `save_masks` wrote.

  Args:
    path: the file's path.
    like: the params (or their abstract values), or other masks of the same network. The
      result has its structure.

  Returns:
    A tree like `like` with the bool arrays of the file, and None at leaves that have
    none in it. Pass it to `sj.with_masks` or `sj.apply_masks`.

  Raises:
    TypeError: `path` is not a path.
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged or is not a file of masks; or `like` has no leaf of
      the same path and shape for one of its masks.
  """
  # Every mask needs its packed bits and its shape; other arrays are ignored.
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
  # Every mask needs a leaf of its path and shape in `like`.
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
  """Converts masks to the named arrays of a mask file.

  Use it to write masks and other arrays to one file.

  Args:
    masks: as in `save_masks`.

  Returns:
    For every mask, its packed bits as `mask:<path>` (uint8) and its shape as
    `shape:<path>` (int64).

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
