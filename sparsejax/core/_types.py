"""The types that scores, distributions, mask transforms and optimizers exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class Moments(NamedTuple):
  """The running averages of the gradient that the inner optimizer keeps.

  Attributes:
    first: first moments (momentum), a tree like the params. All come from one state of
      the inner optimizer or from the average that `sparsify` keeps; if neither has
      those of all sparsified leaves, every entry is None.
    second: second moments, a tree like the params, from the same state. Every entry is
      None unless the inner optimizer divides all sparsified leaves by a second moment,
      as Adam and its relatives do.
  """

  first: PyTree
  second: PyTree


class ScoreInputs(NamedTuple):
  """The inputs of a score.

  Every tree has the structure of the params, with arrays at the sparsified leaves and
  None elsewhere, so `jax.tree.map` works over several of them.

  Attributes:
    params: the weights before this update.
    grads: their gradients. These are dense, unless the user masked them.
    moments: `Moments` of the inner optimizer, after this step.
    masks: the masks before the chain of mask transforms.
    key: a PRNG key, a new one at every mask update.
    step: int32, the number of optimizer updates so far, this one included.
    accumulated: the sums that `sj.accumulate` keeps; None outside of it.
  """

  params: PyTree
  grads: PyTree
  moments: Moments
  masks: PyTree
  key: Array
  step: Array
  accumulated: PyTree = None


class Topology(NamedTuple):
  """The state that a chain of mask transforms passes from one to the next.

  Attributes:
    masks: bool arrays (True = live) at the sparsified leaves, None elsewhere.
    budgets: int32, the number of live weights that each layer should have. The shape is
      () per leaf, (rows,) where the leading axis of the leaf stacks layers, (1, rows)
      where the second axis does; see `core/_stacked.py`.
    finite: bool, False as soon as a score that was used has NaN or +inf. The whole mask
      update is then skipped.
    structure: a `Structure`, which restricts the sets of weights that may be live; None
      for no restriction.
    axes: a `LayerAxes` per sparsified leaf, which says what each axis is; None where
      all are (stacked, taps, inputs, outputs).
  """

  masks: PyTree
  budgets: PyTree
  finite: Array
  structure: Any = None
  axes: Any = None


class DenseGradients(NamedTuple):
  """Flags that say when a method reads gradients of masked weights.

  `sj.mark_dead` reads them.

  Attributes:
    always: bool, whether every update reads them: the inner optimizer gets dense
      gradients, or the mask transform observes every step.
    due: bool, whether the next update is a mask update by the schedule, which reads
      them.
  """

  always: Array
  due: Array


class SparseState(NamedTuple):
  """The optimizer state of a sparsified optimizer.

  Attributes:
    count: int32, the number of updates so far.
    seed: int32, the seed of masks and random scores.
    masks: as in `Topology`; `sj.masks` returns them.
    budgets: as in `Topology`, without the boxes (`nn.Partitioned`, nnx variables)
      around some params, since the metadata of a box describes an array of the kernel's
      shape.
    skipped: int32, mask updates skipped because a score was not finite.
    average: running average of the gradients at the sparsified leaves. It is kept only
      where a score needs momentum and the inner optimizer has none; else None, or a
      tree with None at every leaf where other params could need it (`optax.partition`).
    transform_state: the state of the mask transform.
    inner_state: the state of the inner optimizer.
    dense_gradients: a `DenseGradients` for the next update. None, in states that were
      made without it, counts as always.
    soft_masks: float arrays of at least 0 in place of the masks, by which
      `sj.effective` multiplies the live weights; their values at masked weights do not
      act. `sj.soft_masks` returns them. None for methods without soft masks.
  """

  count: Array
  seed: Array
  masks: PyTree
  budgets: PyTree
  skipped: Array
  average: PyTree
  transform_state: PyTree
  inner_state: PyTree
  dense_gradients: PyTree = None
  soft_masks: PyTree = None


class CondensedState(NamedTuple):
  """The state of `sj.condensed`: an optimizer's state for live weights alone.

  Attributes:
    places: tree like the params without boxes; int32 (units,) at each sparsified leaf,
      the indices of its live blocks, or of its live weights; None elsewhere.
    inner_state: the state of the inner optimizer, with arrays of live weights in place
      of those of whole kernels.
  """

  places: PyTree
  inner_state: PyTree


class ForwardState(SparseState):
  """The state of an optimizer whose masks are applied in the forward pass only.

  It has the fields of `SparseState`. The separate type tells `sj.check_sparse` that
  masked weights may be nonzero in the params.
  """

  __slots__ = ()


class MaskTransform(NamedTuple):
  """A pure function on the topology, with a state of its own.

  Attributes:
    init: `(params) -> state`; `params` has the sparsified leaves only.
    update: `(inputs, topology, state) -> (topology, state)`.
    fits: `(structure, shapes) -> None`, which raises ValueError for a structure that
      the transform does not support. None for a transform without support for
      structures: every structure is refused.
    observe: `(inputs, state) -> state`, called at every step before `update`, whether a
      mask update is due or not, with the inner optimizer's moments from before the
      step. None for a transform that acts at mask updates only.
    check: `(axes) -> None`, called in `init` with a `LayerAxes` per leaf, which raises
      ValueError for sparsified leaves that the transform does not support. None for a
      transform that supports all.
    keeps_budgets: whether `update` never raises the budget of a layer, which
      `sj.condensed` requires.
  """

  init: Callable[[PyTree], PyTree]
  update: Callable[[ScoreInputs, Topology, PyTree], tuple[Topology, PyTree]]
  fits: Callable[[Any, dict[str, tuple[int, ...]]], None] | None = None
  observe: Callable[[ScoreInputs, PyTree], PyTree] | None = None
  check: Callable[[Any], None] | None = None
  keeps_budgets: bool = False


Score = Callable[[ScoreInputs], PyTree]
"""`(inputs) -> tree of floats`; higher is more important, -inf is selected last."""

Distribution = Callable[[dict[str, tuple[int, ...]], Any], Array]
"""`(shapes, density) -> int32 budgets (layers,)`."""
