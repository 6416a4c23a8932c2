"""Shares of the free budget that count weights: rules for `redistribute`."""

import jax

from sparsejax.core import ScoreInputs, Topology, live_counts


def nonzeros(inputs: ScoreInputs, topology: Topology) -> jax.Array:
  """In proportion to the weights live before the chain.

  share_l ~ live_l before any was dropped

  Args:
    inputs: what scores may look at.
    topology: masks and budgets at this place of the chain.

  Returns:
    int32 (layers,).

  References:
    Dettmers & Zettlemoyer 2019 (`nonzero` in the authors' implementation).

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.redistribute(sj.nonzeros)
  """
  return live_counts(inputs.masks, topology.budgets)


def survivors(inputs: ScoreInputs, topology: Topology) -> jax.Array:
  """In proportion to the weights live at this place of the chain.

  share_l ~ live_l after others were dropped

  Args:
    inputs: what scores may look at.
    topology: masks and budgets at this place of the chain.

  Returns:
    int32 (layers,).

  References:
    Mostafa & Wang 2019, "Parameter efficient training of deep convolutional neural
    networks by dynamic sparse reparameterization", algorithm 1.

  Example:
    >>> import sparsejax as sj
    >>> transform = sj.redistribute(sj.survivors)
  """
  return live_counts(topology.masks, topology.budgets)
