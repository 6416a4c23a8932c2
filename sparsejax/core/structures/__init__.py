"""Structures: restrictions on the sets of weights that may be live.

Without a structure, any weights of a layer may be live. The structures are `n_m` (n of
every m weights along an axis), `transposable_n_m` (along inputs and along outputs),
`block`, `channel` and `constant_fan_in`. A structure is
an argument of a method (`sj.rigl(..., structure=sj.n_m(2, 4))`) or of `sparsify`. It is
stored in `Topology.structure`, and mask transforms use its functions in place of
`top_k_masks`.

**The contract.** A `Structure` is a frozen record of pure functions. Their trees have
arrays at the sparsified leaves. Counts and budgets are int32, of shape () per leaf, or
(rows,) where the leading axis stacks layers (see `core/_stacked.py`). `axes` has a
`LayerAxes` per leaf, which says which axes are inputs and outputs, taps, and axes that
stack layers. Shapes are those of single layers as (taps ..., inputs, outputs), by path.
All numbers may be traced. At the start and after every mask update, each layer has
exactly as many live weights as its budget.

- `check(path, axes)`: called in `init`; raises for a layer that does not fit.
- `fit(shapes, budgets)`: changes the budgets of a distribution to ones that the
  structure can satisfy exactly. `fit_units(unit)` makes such a function for structures
  whose budgets are multiples of a unit.
- `select(scores, budgets, where, axes)`: returns the masks of the best candidates, at
  the start (with random scores) and in `prune_to`.
- `keep(scores, counts, masks, axes)`: returns the live weights that `drop` keeps.
  Counts are integers of at least one. As many units are kept as fit into the count, and
  at least one. The result may violate the structure, as that of `constant_fan_in` does,
  if `fill` restores it.
- `fill(scores, budgets, masks, before, axes)`: returns the masks after `grow`, and the
  budgets, which it may lower. Live weights stay live, except those of a neuron that it
  ablates.
- `unit(shape)`: returns the multiples in which `redistribute` may move budget. `unit`
  is None if it may not.

All functions follow the rules of `top_k_mask`. Ties go to the lowest index; -inf is
selected last, and NaN never. They do not sort or flatten, and communicate only counts,
so that sharded kernels stay on their devices. Sums over scores are sums of integers,
because a result must not depend on the order of a sum. `in_matrix_order` passes arrays
with axes (stacked, taps, inputs, outputs) to such a function, whatever their order in
the leaf. A mask transform declares by `fits` which structures it supports; without
`fits` it is refused with every structure.

**A structure of your own** that consists of units of one size needs only a view of the
tensor with the weights of each unit along some axes (`of_units`). For instance, all
taps of a convolution live or dead together:

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
from sparsejax.core.structures._layout import reshape_keeping
from sparsejax.core.structures._n_m import n_m
from sparsejax.core.structures._transposable import transposable_n_m
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
  "transposable_n_m",
]
