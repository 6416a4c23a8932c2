"""Weights and masks in safetensors files, which other frameworks read."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax.core._io import check_path, replacing
from sparsejax.core._masks import apply_masks
from sparsejax.core._tree import align, check_arrays, named_leaves

PyTree = Any
_MASK = "mask:"  # in front of a mask's name, as in the files of `save_masks`


def save_safetensors(
  path: str | os.PathLike, params: PyTree, masks: PyTree | None = None
) -> None:
  """Writes sparse weights and their masks to a safetensors file.

  file[path] = p_i if m_i else 0;  file["mask:" + path] = m

  Tensors are named by the slash-separated paths of the leaves and have their shapes and
  dtypes; flax's kernels are (inputs, outputs). Other frameworks read the file with
  their own functions, such as `safetensors.torch.load_file`. Needs the package
  `safetensors` (`pip install 'sparsejax[export]'`).

  Args:
    path: the file's path; an existing file is replaced atomically.
    params: any pytree of arrays.
    masks: the masks of these params, as `sj.masks` returns them; None for no masks.

  Raises:
    ImportError: safetensors is not installed.
    TypeError: `path` is not a path, a leaf is not an array, or a mask is not bool.
    ValueError: structures or shapes differ, or two leaves have the same path.
    OSError: the file cannot be written; an existing file is unchanged.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj, tempfile
    >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.ones(2)}
    >>> masks = {"kernel": jnp.array([[True, False]]), "bias": None}
    >>> with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
    ...   sj.save_safetensors(file.name, params, masks)
    ...   weights, same = sj.load_safetensors(file.name)
    >>> weights["kernel"], same["kernel"]
    (Array([[1., 0.]], dtype=float32), Array([[ True, False]], dtype=bool))
  """
  target = check_path(path)
  check_arrays("params", params)
  library = _library()
  entries = [None] * len(jax.tree.leaves(params))
  if masks is not None:
    params = apply_masks(params, masks)
    entries = align(params, masks, strict=False)
  tensors = {}
  for (name, leaf), mask in zip(named_leaves(params), entries, strict=True):
    if name in tensors:
      raise ValueError(f"params must have one leaf per path, got two at {name!r}.")
    tensors[name] = leaf
    if mask is not None:
      tensors[_MASK + name] = mask
  data = library.save({name: jnp.asarray(x) for name, x in tensors.items()})
  with replacing(target) as file:
    file.write(data)


def load_safetensors(
  path: str | os.PathLike, like: PyTree = None
) -> tuple[PyTree, PyTree]:
  """Reads weights and masks from a safetensors file.

  Args:
    path: the file's path.
    like: the params of the network (or their abstract values), in whose containers the
      result is returned; None for nested dicts, by the slashes in the names.

  Returns:
    The params and the masks, each in the structure of `like`. A mask is None where the
    file has none. Pass the masks to `sj.with_masks` or `sj.apply_masks`.

  Raises:
    ImportError: safetensors is not installed.
    TypeError: `path` is not a path.
    FileNotFoundError: there is no such file.
    ValueError: the file is not a safetensors file, or `like` and the file have other
      paths, shapes or dtypes.

  Example:
    >>> import jax.numpy as jnp, sparsejax as sj, tempfile
    >>> params = {"layer": {"kernel": jnp.ones((2, 2))}}
    >>> with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
    ...   sj.save_safetensors(file.name, params)
    ...   weights, masks = sj.load_safetensors(file.name, like=params)
    >>> float(weights["layer"]["kernel"].sum()), masks
    (4.0, {'layer': {'kernel': None}})
  """
  source = check_path(path)
  library = _library()
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"path must be a safetensors file, got {source!r}: no file."
    )
  try:
    tensors = library.load_file(source)
  except Exception as e:  # the type is the library's own, from a compiled module
    raise ValueError(f"path must be a safetensors file, got {source!r}: {e}.") from e
  names = [name for name in tensors if not name.startswith(_MASK)]
  masks = {name: tensors.get(_MASK + name) for name in names}
  if like is None:
    return _nested({name: tensors[name] for name in names}), _nested(masks)
  # The leaves of `like` in order, each with its tensor.
  wanted = dict(named_leaves(like))
  if odd := sorted(set(wanted) ^ set(names)):
    raise ValueError(f"like must have the leaves of the file, got others: {odd}.")
  for name, leaf in wanted.items():
    got, want = tensors[name], (leaf.dtype, leaf.shape)
    if (got.dtype, got.shape) != want:
      raise ValueError(
        f"like must have a leaf {got.dtype}{list(got.shape)} at {name!r}, got "
        f"{leaf.dtype}{list(leaf.shape)}."
      )
  treedef = jax.tree.structure(like)
  weights = treedef.unflatten(tensors[name] for name in wanted)
  return weights, treedef.unflatten(masks[name] for name in wanted)


def _nested(flat: dict[str, Any]) -> PyTree:
  """Returns nested dicts from names with slashes; a single "" is the value itself."""
  if list(flat) == [""]:
    return flat[""]
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return tree


def _library() -> Any:
  try:
    import safetensors.flax  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise ImportError(
      "safetensors must be installed for this: pip install 'sparsejax[export]'."
    ) from e
  return safetensors.flax
