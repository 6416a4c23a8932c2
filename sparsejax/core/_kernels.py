"""The default choice of leaves: which arrays are kernels, and why the others are not.

A kernel is a weight that is multiplied with activations. An array does not say what
it is used for, so its own name, the kind of its module and its shape decide. The
module's kind is told by the name of the nearest enclosing module: a word further up
the path says nothing, since a module `PreNorm` may hold Dense layers.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

# "LayerNorm_0" is (layer, norm), "RMSNorm" (rms, norm), "ln_1" (ln), "b_Q" (b, q).
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_NORM = re.compile(r".*norms?|normali[sz].*|ln[a-z]?|bn|gn|rms")
_EMBED = re.compile(r"(?!un|de).*emb(s|eds?|edders?|eddings?)?|wte|wpe")
_POSITION = re.compile(r"(rel)?pos|positions?|positional|relative")
_WEIGHT = re.compile(r"kernels?|weights?|filters?|w[a-z]{0,3}")
_SCALE = re.compile(r"scales?|gamma|gain|decay|log")
_TABLE = re.compile(r"tables?|tokens?|latents|prompts?|codebooks?")
# Layers, whose names may hold a word of another kind: `embed_proj`, `norm_dense`.
_LAYER = re.compile(r"conv|dense|einsum|fc|linear|modulation|proj(ection)?")
_BLOCK = re.compile(r"ffn|mlp")
# `embed_tokens`, `embed_in`: with another noun last (`embed_out`) it is a layer.
_EMBEDDED = re.compile(r"in|positions?|tables?|tokens?")
# Patches and times are embedded by products: `patch_embed`, `time_embed/0`.
_PROJECTED = re.compile(r"patch(es)?|time(step)?")

Words = Sequence[str]


def is_kernel(path: str, leaf: Any) -> bool:
  """Returns whether a leaf is sparsified by default, which is `not why_dense`.

  Args:
    path: the leaf's path, slash-separated.
    leaf: the array, or its abstract value.

  Returns:
    Whether it is sparsified.

  Example:
    >>> import jax.numpy as jnp
    >>> is_kernel("PreNorm_0/Dense_0/kernel", jnp.ones((3, 2)))
    True
    >>> is_kernel("PreNorm_0/LayerNorm_0/scale", jnp.ones((3, 2)))
    False
  """
  return why_dense(path, leaf) is None


def why_dense(path: str, leaf: Any, most_axes: int = 0) -> str | None:
  """Returns why a leaf is left dense by default, or None for a kernel.

  The page "Which leaves are sparsified" has the rule as a table.

  Args:
    path: the leaf's path. Its names are separated by slashes, or by dots as in flat
      dictionaries of PyTorch's names; indices and haiku's `~` are passed over.
    leaf: the array, or its abstract value.
    most_axes: the highest rank among the leaves of the same module, if known. A
      leaf called `b` is a bias only beside one of more axes.

  Returns:
    "not floating", "statistics", "normalization", "embedding", "bias", "scale",
    "rank below 2", "leading axis of 1", or None.

  Example:
    >>> import jax.numpy as jnp
    >>> why_dense("wte/weight", jnp.ones((50, 8)))
    'embedding'
    >>> why_dense("embed_proj/kernel", jnp.ones((50, 8))) is None
    True
    >>> why_dense("cls", jnp.ones((1, 1, 8)))
    'leading axis of 1'
  """
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return "not floating"
  shape = tuple(leaf.shape)
  own, parent = _own_and_module(path)
  name, module = _words(own), _words(parent)
  if path.startswith("batch_stats/") or _is_statistic(name, module):
    return "statistics"
  if _is_normalization(own, name, module):
    return "normalization"
  if _is_bias(name, module, len(shape), most_axes):
    return "bias"
  if _is_embedding(name, module):
    return "embedding"
  if _is_scale(name, shape):
    return "scale"
  if len(shape) < 2:
    return "rank below 2"
  return "leading axis of 1" if _is_broadcast(name, shape) else None


def _own_and_module(path: str) -> tuple[str, str]:
  """A leaf's own name and its nearest enclosing module's; indices are no names."""
  named = [part for part in re.split(r"[/.]", path) if _WORD.search(part)]
  return ("", "", *named)[-1], ("", "", *named)[-2]


def _words(name: str) -> Words:
  return tuple(word.lower() for word in _WORD.findall(name))


def _has(pattern: re.Pattern, words: Words) -> bool:
  return any(map(pattern.fullmatch, words))


def _last(pattern: re.Pattern, words: Words) -> int:
  """The place of the last word of a kind, or -1."""
  return max((i for i, w in enumerate(words) if pattern.fullmatch(w)), default=-1)


def _is_statistic(name: Words, module: Words) -> bool:
  """Whether it is a running average: PyTorch's `running_var`, haiku's `mean_ema`."""
  return name[:1] in (("running",), ("moving",)) or module[-1:] == ("ema",)


def _is_normalization(own: str, name: Words, module: Words) -> bool:
  if _has(_NORM, name) and _last(_LAYER, name) < _last(_NORM, name):
    return True
  if not _has(_NORM, module):
    return False
  if not _has(_WEIGHT, name):
    return True
  # A normalization holds one weight; a `norm_proj/kernel` is a projection's.
  one = own.lower() in ("kernel", "w", "weight")
  return one and _last(_LAYER, module) < _last(_NORM, module)


def _is_embedding(name: Words, module: Words) -> bool:
  if "kernel" in name:  # tables are never called so, Dense and Conv layers always
    return False
  if _has(_LAYER, name) or _has(_BLOCK, name):
    return False
  if _has(_EMBED, name):
    return not _has(_PROJECTED, name)
  if _has(_POSITION, name) or (name and _TABLE.fullmatch(name[-1])):
    return True
  if not module or _has(_LAYER, module) or _has(_PROJECTED, module):
    return False
  head = module[-1]
  if _TABLE.fullmatch(head):
    return True
  if _has(_EMBED, module):
    return bool(_EMBED.fullmatch(head) or _EMBEDDED.fullmatch(head))
  if _has(_POSITION, module):
    return bool(_POSITION.fullmatch(head)) or head in ("bias", "enc", "encoding")
  return False


def _is_bias(name: Words, module: Words, axes: int, most_axes: int) -> bool:
  if not name or "lora" in name or _TABLE.fullmatch(name[-1]):
    return False
  if "bias" in name or "biases" in name or name[-1] in ("beta", "offset"):
    return True
  # A second matrix may be called `b`: its neighbors tell, or a module `bias`.
  return "b" in name and (axes < max(2, most_axes) or module[-1:] == ("bias",))


def _is_scale(name: Words, shape: tuple[int, ...]) -> bool:
  if _has(_LAYER, name) or _has(_BLOCK, name):
    return False
  if _has(_SCALE, name):
    return not _has(_WEIGHT, name) or bool(_SCALE.fullmatch(name[-1]))
  # The norms of weight normalization, one per output.
  return bool(name) and name[-1] == "g" and sum(n > 1 for n in shape) < 2


def _is_broadcast(name: Words, shape: tuple[int, ...]) -> bool:
  """Whether a raw array is spread over a batch: a token (1, 1, d), not a product."""
  if not name or _has(_WEIGHT, name) or _has(_LAYER, name) or len(shape) < 3:
    return False
  pointwise = len(shape) > 3 and shape[:-2] == (1,) * len(shape[:-2])
  if pointwise and min(shape[-2:]) > 1:  # a convolution of width 1
    return False
  return shape[0] == 1 or sum(n > 1 for n in shape) < 2
