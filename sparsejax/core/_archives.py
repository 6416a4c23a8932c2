"""Arrays by name in a file: an uncompressed .npz, written whole and read with distrust.

Nothing in such a file is unpickled or extracted: an archive whose members have paths
outside of it, or hold objects, is read as an archive with odd names, or refused.
"""

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np


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
