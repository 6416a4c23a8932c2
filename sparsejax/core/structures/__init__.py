"""Structures: which sets of weights may be live.

Without a structure any weights of a layer may. A structure restricts that: `n_m` (n of
every m along an axis), `block`, `channel`, `constant_fan_in`. It is given to a method
(`sj.rigl(..., structure=sj.n_m(2, 4))`) or to `sparsify` and rides in
`Topology.structure`; the mask transforms ask it to select in place of `top_k_masks`.

**The contract.** A `Structure` is a frozen record of pure functions. Trees hold arrays
at the sparsified leaves; counts and budgets are int32, () a leaf or (rows,) where the
leading axis stacks layers (see `core.stacked`); `axes` say which axes of each leaf are
inputs, outputs, taps and stacks, a `LayerAxes` per leaf; shapes are those of single
layers as (taps ..., inputs, outputs), by path. All numbers may be traced. After every
mask update, and at the start, each layer holds exactly its budget.

- `check(path, axes)` raises for a layer that does not fit, in `init`.
- `fit(shapes, budgets)` turns the budgets that a distribution gives into ones that the
  structure can hold exactly. `fit_units(unit)` does so for budgets in multiples.
- `select(scores, budgets, where, axes)`: the masks with the best candidates, at the
  start (random scores) and in `prune_to`.
- `keep(scores, counts, masks, axes)`: what `drop` leaves of the live weights. Counts
  are any integers of at least one; units are kept while they fit, and one at least. It
  may leave what is not of the structure, as `constant_fan_in` does, for `fill` to mend.
- `fill(scores, budgets, masks, before, axes)`: what `grow` makes of that, and the
  budgets, which it may lower; live weights stay, except where it closes a neuron.
- `unit(shape)`: in what multiples `redistribute` may move budget, None for not at all.

Rules for all of them, as for `top_k_mask`: ties go to the lowest index; -inf is taken
last, NaN never; no sort, no flattening, and no communication but of counts, so that
sharded kernels stay where they are (sums over scores are made of integers, for their
order must not matter). `in_matrix_order` gives such a function its arrays with axes
(stacked, taps, inputs, outputs), whatever order they have in the leaf. A mask transform
says by `fits` which structures it goes with; one that says nothing is refused under
any.

**A structure of your own** that consists of units of one size is a view of the tensor
with each unit along some axes (`of_units`). All taps of a convolution live or dead
together, for instance:

>>> import jax.numpy as jnp, optax, sparsejax as sj
>>> from sparsejax.core.structures import of_units
>>> taps = of_units(
...   name="taps",
...   check=lambda path, axes: None,
...   unit=lambda shape: shape[0] * shape[1],
...   view=lambda x, axes: (x, axes.taps),
...   restore=lambda view, like, axes: view,
... )
>>> tx = sj.rigl(optax.sgd(0.1), density=0.25, structure=taps)
>>> mask = sj.masks(tx.init({"kernel": jnp.ones((3, 3, 4, 4))}))["kernel"]
>>> print(mask.all((0, 1)).sum(), mask.any((0, 1)).sum())
4 4
"""

from sparsejax.core.structures._base import (
  Structure,
  check_fits,
  check_fixed,
  check_type,
  common_unit,
  density_of,
  fit_units,
  fits_any,
  in_matrix_order,
)
from sparsejax.core.structures._block import block
from sparsejax.core.structures._channel import channel
from sparsejax.core.structures._compress import compress_n_m, expand_n_m
from sparsejax.core.structures._constant_fan_in import constant_fan_in
from sparsejax.core.structures._fan_in import top_k_along
from sparsejax.core.structures._n_m import n_m
from sparsejax.core.structures._units import of_units

__all__ = [
  "Structure",
  "block",
  "channel",
  "compress_n_m",
  "constant_fan_in",
  "expand_n_m",
  "fit_units",
  "in_matrix_order",
  "n_m",
  "of_units",
]
