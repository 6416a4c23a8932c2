"""Shapes of the parameter trees of well-known networks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def resnet50() -> dict[str, Any]:
  """Returns ResNet-50's 54 kernels, norms and biases: 25.6 million numbers."""
  tree, channels = {}, 64

  def conv(name, *shape):
    tree[name] = {"kernel": shape}
    tree[f"{name}_norm"] = {"scale": shape[-1:], "bias": shape[-1:]}

  conv("stem", 7, 7, 3, 64)
  for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
    for block in range(blocks):
      name = f"stage{stage}_block{block}"
      conv(f"{name}_a", 1, 1, channels, width)
      conv(f"{name}_b", 3, 3, width, width)
      conv(f"{name}_c", 1, 1, width, 4 * width)
      if block == 0:
        conv(f"{name}_shortcut", 1, 1, channels, 4 * width)
      channels = 4 * width
  tree["head"] = {"kernel": (2048, 1000), "bias": (1000,)}
  return tree


def vit_b() -> dict[str, Any]:
  """Returns ViT-B/16's 74 kernels, norms, biases, embeddings: 86.6 million numbers."""
  width, hidden = 768, 3072

  def dense(*shape):
    return {"kernel": shape, "bias": shape[-1:]}

  norm = {"scale": (width,), "bias": (width,)}
  tree: dict[str, Any] = {
    "patches": dense(16, 16, 3, width),
    "cls_token": (width,),
    "position_embed": {"embedding": (197, width)},
    "norm": norm,
    "head": dense(width, 1000),
  }
  for i in range(12):
    parts = ("query", "key", "value", "out")
    tree[f"block{i}"] = {
      **{name: dense(width, width) for name in parts},
      "up": dense(width, hidden),
      "down": dense(hidden, width),
      "norm1": norm,
      "norm2": norm,
    }
  return tree


TREES = {"resnet50": resnet50, "vit_b": vit_b}


def shapes(name: str, quick: bool) -> dict[str, Any]:
  """Returns the shapes of a tree; a quick tree is a small part of it."""
  tree = TREES[name]()
  if not quick:
    return tree
  small = lambda s: tuple(n if n < 32 else n // 8 for n in s)
  few = {part: tree[part] for part in list(tree)[:4]}
  return jax.tree.map(small, few, is_leaf=_is_shape)


def drawn(tree: dict[str, Any], seed: int) -> dict[str, Any]:
  """Returns arrays of normal numbers in a tree's shapes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s, np.float32) * np.float32(0.05)),
    tree,
    is_leaf=_is_shape,
  )


def size(tree: dict[str, Any]) -> int:
  """Returns the number of parameters."""
  return sum(math.prod(s) for s in jax.tree.leaves(tree, is_leaf=_is_shape))


def _is_shape(x: Any) -> bool:
  return isinstance(x, tuple)
