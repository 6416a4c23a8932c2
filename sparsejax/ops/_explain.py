"""A report of which path each block-sparse product of a loss takes, and why."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax.core import PyTree, align, check_callable, path_string
from sparsejax.core import masks as find_masks
from sparsejax.ops import _record
from sparsejax.ops._mark import mark_dead


class Product(NamedTuple):
  """The report of one product in one forward pass.

  Attributes:
    kernel: path of the sparsified leaf with these live blocks; empty if no leaf has
      them.
    shape: the shape of the kernel that the product got.
    block: inputs and outputs of one block.
    path: "blocks", "blocks, dense weight gradient", or "dense".
    live: the number of blocks visited in the forward pass; None if blocks were not
      counted.
    blocks: the number of all blocks of the kernel.
    saving: the share of multiply-adds of the forward and backward pass that is skipped,
      0 to 1.
    reason: the reason why the product is dense; empty if it is not.
  """

  kernel: str
  shape: tuple[int, ...]
  block: tuple[int, int]
  path: str
  live: int | None
  blocks: int
  saving: float
  reason: str


def explain(
  loss: Callable[..., Any], params: PyTree, opt_state: PyTree, *batch: Any
) -> list[Product]:
  """Reports which path each block-sparse product of a loss takes, and why.

  saving = 1 - live / blocks;  two thirds of it where the weights' gradient is dense

  It runs the loss once, with `sj.mark_dead(params, opt_state)`, and reports each call
  of `block_dot`, `block_dot_general` and `block_conv_general_dilated`, in the order of
  the calls. A product inside `scan` is reported once per iteration. Products of other
  functions are not reported.

  Args:
    loss: `(params, *batch) -> anything`.
    params: any pytree of arrays.
    opt_state: the state of an optimizer made by this package, possibly nested.
    *batch: the other arguments of the loss.

  Returns:
    One `Product` per product.

  Raises:
    TypeError: `loss` is not a function of these arguments.
    ValueError: `opt_state` has no state of a sparsified optimizer, or belongs to other
      params.

  Example:
    >>> import jax.numpy as jnp, optax, sparsejax as sj
    >>> params = {"kernel": jnp.ones((256, 256))}
    >>> tx = sj.static_sparse(optax.sgd(0.1), 0.25, structure=sj.block((128, 128)))
    >>> loss = lambda params, x: sj.block_dot(x, params["kernel"], (128, 128)).sum()
    >>> [product] = explain(loss, params, tx.init(params), jnp.ones((512, 256)))
    >>> product.path, product.live, product.blocks, product.saving
    ('blocks', 1, 4, 0.75)
  """
  check_callable("loss", loss, "a function of (params, *batch)", 1 + len(batch))
  marked = mark_dead(params, opt_state)
  with _record.recording() as entries:
    # Products are recorded when they are traced. A function that `jit` has compiled
    # before is not traced again, so a new one is made here.
    jax.block_until_ready(jax.jit(lambda p, *rest: loss(p, *rest))(marked, *batch))
    jax.effects_barrier()
  # The masks by path, to find the name of each kernel by its live blocks.
  flat = jax.tree_util.tree_leaves_with_path(params)
  masks = align(params, find_masks(opt_state), strict=False)
  named = [
    (path_string(path), np.asarray(mask))
    for (path, _), mask in zip(flat, masks, strict=True)
    if mask is not None
  ]
  # An entry is one traced product. It has a reason if it is always dense, and one run
  # per execution otherwise; without any run, the platform has the dense product only.
  products = []
  for entry in entries:
    shape, block = entry["shape"], entry["block"]
    blocks = math.prod(shape) // math.prod(block)
    base = {"shape": shape, "block": block, "blocks": blocks, "live": None}
    base |= {"kernel": "", "path": "dense", "saving": 0.0, "reason": entry["reason"]}
    if entry["reason"] or not entry["runs"]:
      base["reason"] = entry["reason"] or f"not measured on {jax.default_backend()}"
      products.append(Product(**base))
      continue
    for (live, wanted), places in zip(entry["runs"], entry["visited"], strict=True):
      # `wanted` counts the blocks that need a gradient, `live` those of the forward
      # pass. The weights' gradient is a third of all multiply-adds.
      row = base | {"live": live, "kernel": _name(named, places, block)}
      if live > entry["limit"]:
        row["reason"] = f"more than {entry['limit']} of {blocks} blocks are live"
      else:
        sparse = wanted <= entry["limit"]
        row["path"] = "blocks" if sparse else "blocks, dense weight gradient"
        row["saving"] = (1 - live / blocks) * (1 if sparse else 2 / 3)
      products.append(Product(**row))
  return products


def _name(named: list[tuple[str, np.ndarray]], live: np.ndarray, block) -> str:
  """Returns the path of the first leaf with these live blocks, `path[i]` in a stack."""
  for name, mask in named:
    shape = (live.shape[0] * block[0], live.shape[1] * block[1])
    size = math.prod(shape)
    if mask.size % size:
      continue
    rows = mask.reshape(-1, live.shape[0], block[0], live.shape[1], block[1])
    hits = np.flatnonzero((rows.any((2, 4)) == live).all((1, 2)))
    if hits.size:
      return name if len(rows) == 1 else f"{name}[{hits[0]}]"
  return ""
