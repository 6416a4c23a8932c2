"""The latency of a network: dense, masked and deployed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.analysis.deployment._deploy import Deployed, deploy
from sparsejax.analysis.deployment._timing import draw_inputs, time_in_turns
from sparsejax.core import PyTree, align, apply_masks, check_integer


class Latency(NamedTuple):
  """The result of `latency`.

  Attributes:
    seconds: for "dense", "masked" and "deployed" the seconds of one call in each round,
      shape (rounds,).
    deployed: the result of `deploy` at this batch size.
  """

  seconds: dict[str, np.ndarray]
  deployed: Deployed

  def speedup(self, over: str = "masked") -> float:
    """Returns the median over rounds of another network's time over the deployed's."""
    return float(np.median(self.seconds[over] / self.seconds["deployed"]))


def latency(
  apply_fn: Callable[[PyTree, jax.Array], Any],
  params: PyTree,
  masks: PyTree | None,
  example: Any,
  rounds: int = 50,
) -> Latency:
  """Times a network dense, masked and deployed, in turns in one process.

  The dense network has the value 1 at masked weights, so that no weight is zero by a
  mask. All three are compiled, with their parameters inside. Run nothing else
  meanwhile.

  Args:
    apply_fn: as for `deploy`.
    params: pytree of arrays.
    masks: the masks from `sj.masks`, or None if the params are masked already.
    example: inputs (n, ...), or their abstract value, as for `deploy`.
    rounds: the number of timings of each network.

  Returns:
    A `Latency`.

  Raises:
    TypeError: as for `deploy`.
    ValueError: as for `deploy`.

  Example:
    >>> net = lambda p, x: x @ p
    >>> found = latency(net, jnp.eye(8), None, jnp.ones((2, 8)), rounds=3)
    >>> sorted(found.seconds), found.seconds["dense"].shape
    (['dense', 'deployed', 'masked'], (3,))
  """
  check_integer("rounds", rounds, 1)
  net = deploy(apply_fn, params, masks, example)
  masked = params if masks is None else apply_masks(params, masks)
  leaves, treedef = jax.tree.flatten(masked)
  entries = [x != 0 if jnp.ndim(x) > 1 else None for x in leaves]
  if masks is not None:
    entries = align(params, masks, strict=False)
  dense = treedef.unflatten(
    x if m is None else jnp.where(m, x, jnp.ones_like(x))
    for x, m in zip(leaves, entries, strict=True)
  )
  calls = {
    "dense": jax.jit(functools.partial(apply_fn, dense)),
    "masked": jax.jit(functools.partial(apply_fn, masked)),
    "deployed": net.apply,
  }
  return Latency(time_in_turns(calls, draw_inputs(net.example), rounds), net)
