"""Exports compact networks: as StableHLO programs and as safetensors files."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sparsejax.analysis.compaction._compact import Compact, Params

_MASK = "mask:"  # in front of a mask's name, as in the files of `sj.save_masks`


def artifact(
  small: Compact, example: Any, *, platforms: tuple[str, ...] | None = None
) -> export.Exported:
  """Exports a compact network with `jax.export`: StableHLO with its parameters inside.

  Args:
    small: the result of `compact`.
    example: inputs `(n, ...)`, or their abstract value; `n` becomes the batch size.
    platforms: such as ("cpu",), the platform that `compact` was called for; None is the
      default.

  Returns:
    A `jax.export.Exported`. Its `call` runs the network; its `serialize` (which needs
    the package `flatbuffers`) returns bytes for a file, which `jax.export.deserialize`
    reads.

  Example:
    >>> from sparsejax.analysis import compact
    >>> x = jnp.ones((1, 2))
    >>> small = compact(lambda w, x: x @ w, jnp.eye(2), None, x)
    >>> artifact(small, x).call(x).tolist()
    [[1.0, 1.0]]
  """
  run = jax.jit(lambda inputs: small.apply(small.params, inputs))
  shape = jax.ShapeDtypeStruct(np.shape(example), example.dtype)
  return export.export(run, platforms=platforms)(shape)


def save_safetensors(path: str | os.PathLike, small: Compact) -> None:
  """Writes parameters and masks of a compact network to a safetensors file.

  Tensors are named as in `small.params`. Each kernel also has a boolean tensor named
  `mask:...`, and `pixels` holds the indices of the pixels that are read. Needs the
  package `safetensors` (`pip install safetensors`).

  Args:
    path: path of the file; an existing file is replaced.
    small: the result of `compact`.

  Raises:
    ImportError: safetensors is not installed.
  """
  tensors = {name: np.asarray(array) for name, array in small.params.items()}
  for name in small.shapes:
    tensors[_MASK + name] = np.asarray(small.masks[name])
  if small.pixels is not None:
    tensors["pixels"] = np.asarray(small.pixels, np.int32)
  # The format stores raw memory, so a transposed view would be written untransposed.
  tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  _safetensors().save_file(tensors, os.fspath(path))


def load_safetensors(path: str | os.PathLike) -> tuple[Params, Params]:
  """Reads a file written by `save_safetensors`.

  Args:
    path: path of the file.

  Returns:
    The parameters, for `Compact.apply` of the same network, and the masks of the
    kernels.

  Raises:
    ImportError: safetensors is not installed.
  """
  tensors = _safetensors().load_file(os.fspath(path))
  arrays = {name: jnp.asarray(array) for name, array in tensors.items()}
  masks = {n.removeprefix(_MASK): a for n, a in arrays.items() if n.startswith(_MASK)}
  skip = ("pixels", *(_MASK + name for name in masks))
  return {n: a for n, a in arrays.items() if n not in skip}, masks


def _safetensors() -> Any:
  try:
    import safetensors.numpy  # pyright: ignore[reportMissingImports]
  except ImportError as e:
    raise ImportError(
      "safetensors must be installed for this: pip install safetensors."
    ) from e
  return safetensors.numpy
