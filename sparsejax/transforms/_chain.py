"""A chain of mask transforms."""

from sparsejax.core import MaskTransform, PyTree, ScoreInputs, Topology
from sparsejax.core.structures import check_fits


def chain(*transforms: MaskTransform) -> MaskTransform:
  """Applies mask transforms one after another to the same topology.

  Args:
    *transforms: mask transforms; the scores of all of them get the inputs from before
      the chain.

  Returns:
    A mask transform whose state is the tuple of their states.

  Raises:
    TypeError: an argument is not a mask transform.

  Example:
    >>> import sparsejax as sj
    >>> rigl = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.gradient))
  """
  for t in transforms:
    if not isinstance(t, MaskTransform):
      raise TypeError(
        "transforms must be mask transforms (drop, grow, redistribute, prune_to or a "
        f"MaskTransform), got {t!r}."
      )

  def init(params: PyTree):
    return tuple(t.init(params) for t in transforms)

  # Each transform gets the topology that the one before it returned, and its own state.
  def update(inputs: ScoreInputs, topology: Topology, state: PyTree):
    after = []
    for transform, s in zip(transforms, state, strict=True):
      topology, s = transform.update(inputs, topology, s)
      after.append(s)
    return topology, tuple(after)

  def fits(structure, shapes):
    for t in transforms:
      check_fits(t, structure, shapes)

  def check(axes):
    for t in transforms:
      if t.check is not None:
        t.check(axes)

  def observe(inputs: ScoreInputs, state: PyTree):
    return tuple(
      s if t.observe is None else t.observe(inputs, s)
      for t, s in zip(transforms, state, strict=True)
    )

  watches = any(t.observe is not None for t in transforms)
  keeps_budgets = all(t.keeps_budgets for t in transforms)
  return MaskTransform(
    init, update, fits, observe if watches else None, check, keeps_budgets
  )
