"""A supermask in a file: the seed of its random weights, and one bit a weight."""

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
  load_masks,
  mask_arrays,
  path_string,
  read_archive,
  write_archive,
)

_SEED, _HASH, _STATE = "seed", "hash", "state:"


class Supermask(NamedTuple):
  """What `load_supermask` reads.

  Attributes:
    params: the network: the seed's weights where live, 0 elsewhere.
    masks: as `sj.masks` gives them.
    state: what was saved beside them; None if nothing was.
    seed: of the weights.
  """

  params: PyTree
  masks: PyTree
  state: PyTree
  seed: int


def weights_hash(params: PyTree) -> str:
  """A hash of every bit of the weights, their paths, shapes and dtypes.

  Equal before and after training a supermask: nothing but the masks was learned.

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
  """Writes a network of random weights as its seed and its masks, one bit a weight.

  An uncompressed .npz without pickle, about a thirty-second of float32 weights;
  `sj.load_masks` reads its masks too. Of the weights only a hash is written.

  Args:
    path: of the file; it is replaced if it is there.
    masks: what `sj.masks` gives.
    seed: from which `init` in `load_supermask` draws the weights.
    params: those weights, for the hash.
    state: what the model keeps beside them, such as running averages; written whole.

  Raises:
    TypeError: a mask is not bool, the seed is not an integer, or path is no path.
    OSError: the file cannot be written; what was there stays.

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
  if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
    raise TypeError(f"seed must be an integer, got {seed!r}.")
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
  """Reads what `save_supermask` wrote, and draws the weights again.

  Args:
    path: of the file.
    init: `seed -> params`, as when it was written.
    like_state: arrays, or their abstract values, whose structure the state gets; None
      to leave it.

  Returns:
    A `Supermask`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged or holds something else, the masks or the state do
      not fit, or `init` draws other weights than those the masks are of.
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
  params = init(seed)
  masks = load_masks(path, params)
  if (found := weights_hash(params)) != expected:
    raise ValueError(
      f"init must draw from seed {seed} the weights that the masks are of, got others: "
      f"their hash is {found[:12]}, not {expected[:12]}. The model, its initialization "
      "or the random number generator is another."
    )
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like_state)
  shapes = {path_string(key): tuple(leaf.shape) for key, leaf in leaves}
  if like_state is not None and shapes != {k: v.shape for k, v in saved.items()}:
    raise ValueError(
      f"like_state must have the leaves that were saved, {sorted(saved)}, and their "
      f"shapes; got {shapes}."
    )
  state = treedef.unflatten(jnp.asarray(saved[name]) for name in shapes)
  return Supermask(apply_masks(params, masks), masks, state, seed)
