"""The default choice of leaves: kernels are sparsified, all other arrays are dense.

A kernel is a weight that is multiplied with activations. An array does not say how it
is used, so its own name, the name of its module and its shape decide. Only the nearest
enclosing module counts, because a module such as `PreNorm` may contain Dense layers.
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
# Learned vectors that are looked up or attended to.
_LEARNED = re.compile(
  r"anchors?|cent(er|roid)s?|codevectors?|freq(s|uency|uencies)?|points?"
  r"|prototypes?|slots?"
)
# Words for layers, whose names may have words of other kinds: `embed_proj`.
_LAYER = re.compile(r"conv|dense|einsum|fc|linear|modulation|proj(ection)?")
_BLOCK = re.compile(r"ffn|mlp")
# Last words of embeddings: `embed_tokens`, `embed_in`. Others, such as `embed_out`, are
# layers.
_EMBEDDED = re.compile(r"in|positions?|tables?|tokens?")
# Patches and times are embedded by a product with a kernel: `patch_embed`, `temb/w`.
_PROJECTED = re.compile(r"patch(es)?|time(step)?|temb")

Words = Sequence[str]


def is_kernel(path: str, leaf: Any) -> bool:
  """Returns whether a leaf is sparsified by default, so that `why_dense` gives None.

  Args:
    path: the path of the leaf, slash-separated.
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
  """Returns the reason why a leaf is dense by default, or None for a kernel.

  The page "Which leaves are sparsified" has the rule as a table.

  Args:
    path: the path of the leaf. Names are separated by slashes, or by dots as in flat
      dictionaries of PyTorch's names. Indices and haiku's `~` are ignored.
    leaf: the array, or its abstract value.
    most_axes: the highest rank among the leaves of the same module, if known. A leaf
      `b` of rank 2 or more is a bias only if this is higher than its own rank.

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
  name, module = words(own), words(parent)
  if path.startswith("batch_stats/") or _is_statistic(name, module):
    return "statistics"
  if _is_normalization(own, name, module):
    return "normalization"
  if _is_bias(name, module, len(shape), most_axes):
    return "bias"
  if _is_embedding(own, name, module):
    return "embedding"
  if _is_scale(name, shape):
    return "scale"
  if len(shape) < 2:
    return "rank below 2"
  return "leading axis of 1" if _is_broadcast(own, name, shape) else None


def _own_and_module(path: str) -> tuple[str, str]:
  """Returns the leaf's name and that of the nearest module; indices are no names."""
  named = [part for part in re.split(r"[/.]", path) if _WORD.search(part)]
  return ("", "", *named)[-1], ("", "", *named)[-2]


def words(name: str) -> Words:
  """Returns the words of a name in lower case: `LayerNorm_0` is ("layer", "norm")."""
  return tuple(word.lower() for word in _WORD.findall(name))


def _has(pattern: re.Pattern, words: Words) -> bool:
  return any(map(pattern.fullmatch, words))


def _last(pattern: re.Pattern, words: Words) -> int:
  """Returns the index of the last word that matches, or -1."""
  return max((i for i, w in enumerate(words) if pattern.fullmatch(w)), default=-1)


def _is_statistic(name: Words, module: Words) -> bool:
  """Returns whether a leaf is a running average, such as PyTorch's `running_var`."""
  return name[:1] in (("running",), ("moving",)) or module[-1:] == ("ema",)


def _is_normalization(own: str, name: Words, module: Words) -> bool:
  if _has(_NORM, name) and _last(_LAYER, name) < _last(_NORM, name):
    return True
  if not _has(_NORM, module):
    return False
  if not _has(_WEIGHT, name):
    return True
  # A normalization has a single weight; `norm_proj/kernel` is that of a projection.
  one = own.lower() in ("kernel", "w", "weight")
  return one and _last(_LAYER, module) < _last(_NORM, module)


def _is_embedding(own: str, name: Words, module: Words) -> bool:
  if "kernel" in name:  # a name of Dense and Conv layers, never of embeddings
    return False
  if _has(_LAYER, name) or _has(_BLOCK, name):
    return False
  if _has(_EMBED, name):
    return not _has(_PROJECTED, name)
  if _has(_POSITION, name) or (name and _TABLE.fullmatch(name[-1])):
    return True
  if _is_learned(name):
    return True
  # A numbered weight such as `w1` belongs to a product, whatever its module.
  if _has(_WEIGHT, name) and own[-1].isdigit():
    return False
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


def _is_learned(name: Words) -> bool:
  """Returns whether it is like `slots` or `object_queries`, but not `queries` alone."""
  if not name or _has(_WEIGHT, name):
    return False
  qualified = len(name) > 1 and name[-1] == "queries"
  return qualified or bool(_LEARNED.fullmatch(name[-1]))


def _is_bias(name: Words, module: Words, axes: int, most_axes: int) -> bool:
  if not name or "lora" in name or _TABLE.fullmatch(name[-1]):
    return False
  if "bias" in name or "biases" in name or name[-1] in ("beta", "offset"):
    return True
  # `b` may also be a second matrix. It is a bias if another leaf of the module has more
  # axes, or if the module is called `bias`.
  return "b" in name and (axes < max(2, most_axes) or module[-1:] == ("bias",))


def _is_scale(name: Words, shape: tuple[int, ...]) -> bool:
  if _has(_LAYER, name) or _has(_BLOCK, name):
    return False
  if "".join(name[:2]) == "timemix":  # RWKV's, one per channel
    return True
  if _has(_SCALE, name):
    return not _has(_WEIGHT, name) or bool(_SCALE.fullmatch(name[-1]))
  # The `g` of weight normalization, which has one norm per output.
  return bool(name) and name[-1] == "g" and sum(n > 1 for n in shape) < 2


def _is_broadcast(own: str, name: Words, shape: tuple[int, ...]) -> bool:
  """Returns whether an array is broadcast over a batch, such as a token (1, 1, d)."""
  if not name or _has(_WEIGHT, name) or _has(_LAYER, name):
    return False
  if len(shape) < 3:  # `h0` or `tau`; a name of one letter may be that of a matrix
    return shape[:1] == (1,) and len(own) > 1 and "lora" not in name
  pointwise = len(shape) > 3 and shape[:-2] == (1,) * len(shape[:-2])
  if pointwise and min(shape[-2:]) > 1:  # a convolution of width 1
    return False
  return shape[0] == 1 or sum(n > 1 for n in shape) < 2
