"""Masks in a file: one bit a weight, by path."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core._archives import read_archive, write_archive
from sparsejax.core._masks import pack, unpack
from sparsejax.core._tree import check_masks, named_leaves

PyTree = Any


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
