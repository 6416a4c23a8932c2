"""What is refused before a structure is put to work."""

from collections.abc import Sequence
from typing import Any

from sparsejax.core import (
  Distribution,
  LayerAxes,
  MaskTransform,
  check_known,
  layer_shapes,
)
from sparsejax.core.structures import Structure, check_fits, check_fixed, check_type
from sparsejax.distributions import uniform


def check_structure(
  structure: Structure | None, density: Any, distribution: Distribution
) -> None:
  """What can be said of a structure before any layer is known.

  Args:
    structure: a structure, or None.
    density: as in `sparsify`; None starts with everything live.
    distribution: as in `sparsify`.

  Raises:
    TypeError: structure is not one.
    ValueError: it fixes the density, and density or distribution says otherwise.
  """
  if structure is None:
    return
  check_type(structure)
  if structure.density is None or density is None:
    return
  check_fixed(density, structure)
  if distribution is not uniform:
    raise ValueError(
      f"distribution must be uniform under the structure {structure.name}, which fixes "
      f"every layer's density, got {distribution!r}."
    )


def check_layers(
  structure: Structure | None, transform: MaskTransform, axes: Sequence[LayerAxes]
) -> None:
  """What can be said of a structure once the layers are known.

  Args:
    structure: a structure, or None.
    transform: the mask transform that will work under it.
    axes: what the axes of each sparsified leaf are.

  Raises:
    ValueError: a layer does not fit, or the transform does not; the structure must know
      a kernel's inputs, and nobody declared them.
  """
  if transform.check is not None:
    transform.check(axes)
  if structure is None:
    return
  check_axes(structure, axes)
  check_fits(transform, structure, layer_shapes(axes))


def check_axes(structure: Structure, axes: Sequence[LayerAxes]) -> None:
  """Raises ValueError unless a structure fits every layer.

  Args:
    structure: a structure.
    axes: what the axes of each sparsified leaf are.

  Raises:
    ValueError: a layer does not fit, or its inputs are not known.
  """
  # Of a vector the structure's own message says more.
  check_known([a for a in axes if len(a.layer) > 1], f"the structure {structure.name}")
  for a in axes:
    structure.check(a.path, a)
