"""What is refused before a structure is put to work."""

from typing import Any

from sparsejax.core.structures.base import (
  Structure,
  check_fits,
  check_fixed,
  check_type,
)
from sparsejax.core.types import Distribution, MaskTransform
from sparsejax.distributions.static import uniform


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
  structure: Structure, transform: MaskTransform, shapes: dict[str, tuple[int, ...]]
) -> None:
  """What can be said of a structure once the layers are known.

  Args:
    structure: a structure.
    transform: the mask transform that will work under it.
    shapes: the layers' shapes by path.

  Raises:
    ValueError: a layer does not fit, or the transform does not.
  """
  for path, shape in shapes.items():
    structure.check(path, shape)
  check_fits(transform, structure, shapes)
