"""Infers the axes of a kernel from its path and its shape.

Where `input_axes` declares nothing, the axes follow from paths and shapes alone:

| leaf | rank | inputs | outputs | others |
|---|---|---|---|---|
| any | 2 | 0 | 1 | |
| any in a module named like `conv` | 3, 4 or 5 | -2 | -1 | taps |
| of another convolution, see below | 4 or 5 | -2 | -1 | taps |
| `weight`, `weight_ih`, `weight_hh`, `in_proj_weight` | 2 | 1 | 0 | |
| `weight` of a convolution, likewise | 3, 4 or 5 | 1 | 0 | taps |
| of `query`, `key`, `value` | 3 | 0 | 1, 2 | |
| of `out` beside a `query` | 3 | 0, 1 | 2 | |
| with a bias of the last two or more axes' shape | 3 or more | first | those | |
| of `DenseGeneral`, `LinearGeneral`, bias of rank 1 | 3 or more | first | last | |

Ranks are those of one layer, without the axes that stack layers. Where the bias in the
same module contradicts the name, the bias decides. The axes of all other kernels, and
those of modules named like `einsum`, are not known. They must be declared by
`input_axes` for structures and distributions that need them.

A kernel of rank 4 or 5 in a module not named like `conv` belongs to a convolution if
its taps are those of one: all 1; or equal and at most 11, except axes of 1; or all
equal with at most 4 inputs, as for patches of images. The taps may be any if the bias
in the same module has the shape (outputs,), or if the module is named like `stem`,
`patch`, `downsample`, `upsample`, `depthwise`, `pointwise`, `shortcut`. There are two
exceptions. Attention (`query`, `key`, `value`, `q`, `qkv`, and `k`, `v`, `o`, `out`,
`proj` next to them) needs taps of 1, or such a bias and the taps of a convolution.
Modules named like `dense`, `linear`, `experts`, `moe`, which may stack layers, need
taps of 1 or such a bias.
"""

import math
import re
from typing import Any

from sparsejax.core._kernels import words

_LEAF_NAMES = {"kernel", "w", "weight"}
_OUTPUTS_FIRST = re.compile(r"^(weight|weight_ih|weight_hh|in_proj_weight)$")


# Words in the names of modules; see the rules above.
_WINDOWED = re.compile(r"stem|patch(es)?|(down|up)sample|depthwise|pointwise|shortcut")
_ATTENDS = re.compile(r"quer(y|ies)|keys?|values?|w?(q|qk|kv|qkv)|w[kv]")
_BESIDE = re.compile(r"[kvo]|wo|out|outputs?|proj(ection)?")
_STACKABLE = re.compile(r"dense|linear|experts?|moe")


def _has(pattern: re.Pattern, name: str) -> bool:
  return any(map(pattern.fullmatch, words(name)))


def _module(path: str) -> tuple[str, str, str]:
  """Splits a path into what precedes the module, the module's name and the leaf's."""
  parts = re.split(r"([/.])", path)  # PyTorch's names are separated by dots
  leaf = parts[-1]
  if leaf not in _LEAF_NAMES or len(parts) == 1:
    return "".join(parts[:-1]), leaf, leaf
  names = [name for name in parts[:-1:2] if not name.isdigit()]
  return "".join(parts[:-3]), names[-1] if names else "", leaf


def _neighbors(around: str, leaves: dict[str, Any]) -> set[str]:
  """Returns the names that come next in the paths that begin with `around`."""
  rest = (path[len(around) :] for path in leaves if path.startswith(around))
  return {re.split(r"[/.]", path)[0] for path in rest}


def _is_attention(around: str, module: str, leaves: dict[str, Any]) -> bool:
  """Returns whether a module belongs to attention, by its own or a neighbor's name."""
  if _has(_ATTENDS, module):
    return True
  if not _has(_BESIDE, module):
    return False
  return any(_has(_ATTENDS, name) for name in _neighbors(around, leaves))


def _is_convolution(window, inputs, has_bias, attention, module) -> bool:
  """Returns whether a kernel of rank 4 or 5 is a convolution's, by the rules above.

  Args:
    window: the lengths of what would be its taps.
    inputs: how many inputs it would have.
    has_bias: whether its module has a bias with one number per output.
    attention: whether its module is a projection of attention.
    module: the module's name.
  """
  sides = {n for n in window if n > 1}
  if "conv" in module.lower() or not sides:
    return True
  small = len(sides) == 1 and max(sides) <= 11
  patch = len(set(window)) == 1 and inputs <= 4
  if attention:
    return has_bias and (small or patch)
  if has_bias or _has(_WINDOWED, module):
    return True
  return (small or patch) and not _has(_STACKABLE, module)


def bias_shape(path: str, leaves: dict[str, Any]) -> tuple[int, ...] | None:
  """Returns the shape of the bias in the same module, or None if there is none."""
  leaf = _module(path)[2]
  if leaf in _LEAF_NAMES:
    for name in ("bias", "b"):
      bias = leaves.get(path.removesuffix(leaf) + name)
      if bias is not None:
        return tuple(bias.shape)
  return None


def known_axes(path, shape, stack, bias, leaves):
  """Returns inputs and outputs by the table of this module, as axes of the leaf."""
  if bias is not None:
    bias = bias_of_layer(bias, shape, stack)
  axes = [i for i in range(len(shape)) if i not in stack]
  layer = tuple(shape[i] for i in axes)
  found = _of_layer(path, layer, bias, leaves)
  if found is None:
    return (), ()
  return tuple(tuple(axes[i] for i in side) for side in found)


def bias_of_layer(bias, shape, stack):
  """Returns the shape of one layer's bias, or None if it is stacked differently."""
  # The stacked axis of kernel and bias may agree from the front or from the back.
  for offset in (0, len(bias) - len(shape)):
    at = [axis + offset for axis in stack]
    if all(0 <= b < len(bias) and bias[b] == shape[b - offset] for b in at):
      return tuple(n for i, n in enumerate(bias) if i not in at)
  return None


def _of_layer(path, shape, bias, leaves):
  """Returns inputs and outputs of one layer by the table of this module, or None."""
  around, module, leaf = _module(path)
  rank, name = len(shape), module.lower()
  conv, general = "conv" in name, "general" in name
  if rank < 2 or rank > 5 or "einsum" in name:
    return None
  # Torch's names have the outputs first, unless the bias fits the last axis only.
  if _OUTPUTS_FIRST.search(leaf):
    if rank == 3 and not conv:
      return None
    size = None if bias is None else math.prod(bias)
    if size is not None and size != shape[0] and size == shape[-1]:
      return (rank - 2,), (rank - 1,)
    attention = rank > 3 and _is_attention(around, module, leaves)
    if rank > 3 and not _is_convolution(
      shape[2:], shape[1], size == shape[0], attention, module
    ):
      return None
    return (1,), (0,)
  if rank == 2:
    return (0,), (1,)
  # A bias of rank 1 must have the length of the outputs; one of several axes has the
  # shape of the outputs.
  if bias is not None and len(bias) == 1 and bias[0] != shape[-1]:
    return None
  many = len(bias) if bias is not None and 1 < len(bias) < rank else 0
  if many and not conv:
    split = rank - many
    agree = bias == shape[split:]
    return (tuple(range(split)), tuple(range(split, rank))) if agree else None
  # Attention: its output kernel is recognized by a `query` in the same module.
  if rank == 3 and name in ("query", "key", "value"):
    return ((0,), (1, 2)) if bias is None else None
  if rank == 3 and name == "out" and "query" in _neighbors(around, leaves):
    return (0, 1), (2,)
  # A general layer is known only with a bias. The rest are convolutions or unknown.
  if general:
    return None if bias is None else (tuple(range(rank - 1)), (rank - 1,))
  if rank == 3 and not conv:
    return None
  attention = rank > 3 and _is_attention(around, module, leaves)
  if rank > 3 and not _is_convolution(
    shape[:-2], shape[-2], bias == shape[-1:], attention, module
  ):
    return None
  return (rank - 2,), (rank - 1,)


def outputs_first(path: str) -> bool:
  """Returns whether a leaf has one of torch's names, whose outputs are axis 0."""
  return bool(_OUTPUTS_FIRST.search(_module(path)[2]))
