"""The types that the four parts of a method exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class Moments(NamedTuple):
  """Running averages of the gradient, as the inner optimizer keeps them.

  Attributes:
    first: the params' tree of first moments (momentum).
    second: of second moments, where the optimizer divides by them (Adam and its
      relatives); None elsewhere.
  """

  first: PyTree
  second: PyTree


class ScoreInputs(NamedTuple):
  """What a score may look at.

  Every tree has the structure of the params and holds arrays at the sparsified
  leaves and None elsewhere, so `jax.tree.map` over several of them just works.

  Attributes:
    params: the weights that came into the update.
    grads: their gradients, dense unless the user masked them.
    moments: `Moments` of the inner optimizer, after this step.
    masks: the masks before the chain of mask transforms.
    key: a PRNG key, fresh at every mask update.
    step: int32, the number of optimizer updates so far, this one included.
    accumulated: what `sj.accumulate` has gathered; None outside of it.
  """

  params: PyTree
  grads: PyTree
  moments: Moments
  masks: PyTree
  key: Array
  step: Array
  accumulated: PyTree = None


class Topology(NamedTuple):
  """What a chain of mask transforms carries.

  Attributes:
    masks: bool arrays (True = live) at the sparsified leaves, None elsewhere.
    budgets: int32, the number of live weights each layer should hold: a scalar per
      leaf, (rows,) where the leading axis of the leaf stacks layers, (1, rows) where
      the next one does; see `core.stacked`.
    finite: bool, False once a score that was used held NaN or +inf; the mask
      update is then skipped whole.
    structure: which sets of weights may be live, a `Structure`; None for any.
    axes: what the axes of each sparsified leaf are, a `LayerAxes` per leaf; None where
      all are (stacked, taps, inputs, outputs).
  """

  masks: PyTree
  budgets: PyTree
  finite: Array
  structure: Any = None
  axes: Any = None


class DenseGradients(NamedTuple):
  """When a method looks at the gradients of dead weights; read by `sj.mark_dead`.

  Attributes:
    always: bool, whether it does at every update: where the inner optimizer sees dense
      gradients, or the mask transform watches every step.
    due: bool, whether the schedule makes the coming update a mask update, which looks
      at them.
  """

  always: Array
  due: Array


class SparseState(NamedTuple):
  """The optimizer state of a sparsified optimizer.

  Attributes:
    count: int32, the number of updates so far.
    seed: int32, the seed of masks and random scores.
    masks: as in `Topology`; what `sj.masks` finds.
    budgets: as in `Topology`, without the boxes (`nn.Partitioned`, nnx variables) in
      which some params come: these speak of arrays of the kernel's shape.
    skipped: int32, mask updates skipped because a score was not finite.
    average: running average of the gradients at the sparsified leaves, kept only
      where a score needs momentum and the inner optimizer holds none; else None.
    transform_state: the mask transform's own state.
    inner_state: the inner optimizer's state.
    dense_gradients: a `DenseGradients`, of the coming update; None, in states that were
      made without it, counts as always.
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


class ForwardState(SparseState):
  """The state of an optimizer whose masks act in the forward pass only.

  A `SparseState` with the same fields. The type alone says that masked weights are not
  promised to be zero in the params (`sj.check_sparse`).
  """

  __slots__ = ()


class MaskTransform(NamedTuple):
  """A pure function on the topology, with a state of its own.

  Attributes:
    init: `(params) -> state`; params holds the sparsified leaves only.
    update: `(inputs, topology, state) -> (topology, state)`.
    fits: `(structure, shapes) -> None`, raises ValueError for a structure that it does
      not go together with; None for a transform that knows none, so that all are
      refused.
    observe: `(inputs, state) -> state`, called at every step, whether a mask update is
      due or not, before `update`, with the inner optimizer's moments from before the
      step; None for a transform that looks at mask updates only.
    check: `(axes) -> None`, raises ValueError for sparsified leaves that it cannot work
      on, given a `LayerAxes` per leaf; called in init. None for one that takes any.
  """

  init: Callable[[PyTree], PyTree]
  update: Callable[[ScoreInputs, Topology, PyTree], tuple[Topology, PyTree]]
  fits: Callable[[Any, dict[str, tuple[int, ...]]], None] | None = None
  observe: Callable[[ScoreInputs, PyTree], PyTree] | None = None
  check: Callable[[Any], None] | None = None


Score = Callable[[ScoreInputs], PyTree]
"""`(inputs) -> tree of floats`, higher = worth more; -inf is a legal "never"."""

Distribution = Callable[[dict[str, tuple[int, ...]], Any], Array]
"""`(shapes, density) -> int32 budgets (layers,)`."""
