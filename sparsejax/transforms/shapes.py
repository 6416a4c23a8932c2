"""The layers of a tree, by name and shape."""

import jax

from sparsejax.core.leaves import named_leaves
from sparsejax.core.types import PyTree


def layer_shapes(masks: PyTree, budgets: PyTree) -> dict[str, tuple[int, ...]]:
  """The shape of each layer by its path, in the order of the budgets.

  Args:
    masks: tree of arrays.
    budgets: tree of scalars, or of vectors (rows,) for leaves that stack layers;
      row i of such a leaf is called `path/i`.

  Returns:
    dict from path to shape.
  """
  shapes = {}
  leaves = named_leaves(masks)
  for (name, mask), budget in zip(leaves, jax.tree.leaves(budgets), strict=True):
    if len(budget.shape):
      rows = {f"{name}/{row}": mask.shape[1:] for row in range(mask.shape[0])}
      shapes.update(rows)
    else:
      shapes[name] = mask.shape
  return shapes
