"""Files of supermasks: the seed of the random weights, and one bit per weight."""

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.core import (
  PyTree,
  apply_masks,
  check_arrays,
  check_integer,
  load_masks,
  mask_arrays,
  path_string,
  read_archive,
  write_archive,
)

_SEED, _HASH, _STATE = "seed", "hash", "state:"


class Supermask(NamedTuple):
  """The result of `load_supermask`.

  Attributes:
    params: the network: the weights drawn from the seed, zero where masked.
    masks: bool arrays, True = live, as returned by `sj.masks`.
    state: the saved model state; None without `like_state`.
    seed: the seed of the weights.
  """

  params: PyTree
  masks: PyTree
  state: PyTree
  seed: int


def weights_hash(params: PyTree) -> str:
  """Computes a hash of every bit of the weights, their paths, shapes and dtypes.

  The hash is the same before and after a supermask is trained, which shows that only
  the masks were learned.

  Args:
    params: any pytree of arrays.

  Returns:
    64 hexadecimal digits (SHA-256).

  Example:
    >>> import jax.numpy as jnp
    >>> weights_hash({"w": jnp.zeros(2)}) == weights_hash({"w": -jnp.zeros(2)})
    False
  """
  check_arrays("params", params)
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
    leaf = np.asarray(leaf)
    digest.update(f"{path_string(path)} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def save_supermask(
  path: str | os.PathLike,
  masks: PyTree,
  seed: int,
  params: PyTree,
  state: PyTree = None,
) -> None:
  """Writes a network of random weights as its seed and masks, with one bit per weight.

  The file is an uncompressed .npz without pickle, about 1/32 of the size of float32
  weights. `sj.load_masks` can read its masks too. Instead of the weights, a hash of
  them is written.

  Args:
    path: the path of the file; an existing file is replaced.
    masks: the masks, as returned by `sj.masks`.
    seed: the seed from which `init` in `load_supermask` draws the weights.
    params: the weights drawn from the seed, for the hash.
    state: further variables of the model, such as running averages; written in full.

  Raises:
    TypeError: a mask is not bool, the seed is not an integer, or path is not a path.
    OSError: the file cannot be written; an existing file is unchanged.

  Example:
    >>> import jax, jax.numpy as jnp, tempfile
    >>> init = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (2, 2))}
    >>> masks = {"w": jnp.array([[True, False], [False, True]])}
    >>> with tempfile.NamedTemporaryFile() as file:
    ...   save_supermask(file.name, masks, seed=3, params=init(3))
    ...   loaded = load_supermask(file.name, init)
    >>> bool((loaded.params["w"] == jnp.where(masks["w"], init(3)["w"], 0)).all())
    True
  """
  check_integer("seed", seed)
  arrays = mask_arrays(masks)
  arrays[_SEED] = np.asarray(seed, np.int64)
  arrays[_HASH] = np.asarray(weights_hash(params))
  for key, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
    arrays[_STATE + path_string(key)] = np.asarray(leaf)
  write_archive(path, arrays)


def load_supermask(
  path: str | os.PathLike,
  init: Callable[[int], PyTree],
  like_state: PyTree = None,
) -> Supermask:
  """Reads a file written by `save_supermask` and draws its weights again.

  Args:
    path: the path of the file.
    init: `seed -> params`, the function that drew the saved network's weights.
    like_state: tree of arrays, or of their abstract values, with the structure of the
      saved state; None to ignore the saved state.

  Returns:
    A `Supermask`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is damaged or not a supermask, the masks or the state do not
      fit, or `init` draws weights with a different hash.
  """
  file = read_archive(path, "save_supermask")
  if not {_SEED, _HASH} <= set(file) or file[_SEED].shape or file[_HASH].shape:
    raise ValueError(f"path must be a file of save_supermask, got {os.fspath(path)!r}.")
  seed, expected = int(file[_SEED]), str(file[_HASH])
  saved = {
    name.removeprefix(_STATE): value
    for name, value in file.items()
    if name.startswith(_STATE)
  }
  # Draw the weights, and verify by their hash that they are those of the saved masks.
  params = init(seed)
  masks = load_masks(path, params)
  if (found := weights_hash(params)) != expected:
    raise ValueError(
      f"init must draw from seed {seed} the weights that the masks are of, got others: "
      f"their hash is {found[:12]}, not {expected[:12]}. The model, its initialization "
      "or the random number generator is another."
    )
  # Restore the state by its leaves' paths, into the structure of `like_state`.
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like_state)
  shapes = {path_string(key): tuple(leaf.shape) for key, leaf in leaves}
  if like_state is not None and shapes != {k: v.shape for k, v in saved.items()}:
    raise ValueError(
      f"like_state must have the leaves that were saved, {sorted(saved)}, and their "
      f"shapes; got {shapes}."
    )
  state = treedef.unflatten(jnp.asarray(saved[name]) for name in shapes)
  return Supermask(apply_masks(params, masks), masks, state, seed)
