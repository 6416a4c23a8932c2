"""The device mesh of a run, and the rules by which its arrays are sharded."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparsejax.core import is_kernel, path_string
from sparsejax.training import _errors

PyTree = Any

AXES = ("data", "model")


class Layout(NamedTuple):
  """A device mesh, and how parameters are sharded over it.

  Attributes:
    mesh: a mesh with the axes `data` and `model`, of type Auto: the compiler propagates
      shardings.
    fsdp: whether parameters are sharded over `data` too.
    rules: pairs of a regular expression, searched for in a parameter's path, and one
      mesh axis (or None) per axis of the parameter. The first match applies.
  """

  mesh: Mesh
  fsdp: bool
  rules: tuple[tuple[str, tuple[str | None, ...]], ...]

  @property
  def batch(self) -> NamedSharding:
    """The sharding of a batch: the first axis over `data`."""
    return NamedSharding(self.mesh, P("data"))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding that puts a whole copy on every device."""
    return NamedSharding(self.mesh, P())

  @property
  def shards(self) -> int:
    """The number of shards per batch."""
    return self.mesh.shape["data"]


def make_layout(
  data: int,
  model: int,
  *,
  fsdp: bool = False,
  rules: Mapping[str, tuple[str | None, ...]] | None = None,
  batch_size: int,
  num_seeds: int = 1,
) -> Layout | None:
  """Builds the mesh of a run.

  Args:
    data: devices along the axis `data`; -1 for all that `model` leaves.
    model: devices along the axis `model`.
    fsdp: see `Layout`.
    rules: see `Layout`.
    batch_size: examples per step.
    num_seeds: seeds that are trained together.

  Returns:
    A `Layout`, or None for one device.

  Raises:
    ConfigError: if there are too few devices, if there are several processes and a
      device would be idle, if `batch_size` is not a multiple of `data`, or if there are
      several seeds.
  """
  # The number of devices along each axis; -1 means all that `model` leaves free.
  there, processes = jax.device_count(), jax.process_count()
  if data == -1:
    data = max(there // model, 1)
  wanted = data * model
  if wanted > there or (processes > 1 and wanted != there):
    rule = "be" if processes > 1 else "be at most"
    raise _errors.ConfigError(
      f"mesh.data * mesh.model must {rule} the {there} devices of {processes}"
      f" process{'es' if processes > 1 else ''}; got {data} * {model}"
      " (data=-1 takes all; JAX_NUM_CPU_DEVICES=8 makes a CPU eight devices)"
    )
  if wanted == 1:
    return None
  if batch_size % data:
    raise _errors.ConfigError(
      f"batch_size must be a multiple of mesh.data ({data}); got {batch_size}"
    )
  if num_seeds > 1:
    raise _errors.ConfigError(
      f"num_seeds must be 1 on a mesh of {wanted} devices; got {num_seeds}"
    )
  # With Auto axes the compiler propagates shardings; the code only constrains some.
  mesh = jax.make_mesh(
    (data, model), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:wanted]
  )
  return Layout(mesh, fsdp, tuple((rules or {}).items()))


def of_state(layout: Layout, state: PyTree) -> PyTree:
  """Returns the sharding of each array of a training state.

  An array that belongs to a parameter (its path ends with the parameter's path, and its
  shape is the same: masks, moments, averages) has the parameter's sharding. So have
  packed masks, except that their shorter last axis is replicated where it does not
  divide into whole bytes per shard. All other arrays are replicated.

  Args:
    layout: the `Layout` returned by `make_layout`.
    state: a `TrainState`, abstract or not.

  Returns:
    A tree of `NamedSharding`.

  Raises:
    ConfigError: if a rule does not fit a parameter.
  """
  params = jax.tree_util.tree_leaves_with_path(state.params)
  places = {path: (leaf.shape, _spec(layout, path, leaf)) for path, leaf in params}

  # Compare each ending of the leaf's path with the paths of the parameters.
  def place(path, leaf):
    for i in range(len(path)):
      shape, spec = places.get(path[i:], (None, None))
      if spec is not None and shape == leaf.shape:
        return NamedSharding(layout.mesh, spec)
      # A `PackedMask` is a node below the parameter's path; its bits are uint8.
      shape, spec = places.get(path[i:-1], (None, None))
      if not shape or spec is None or leaf.dtype != np.uint8:
        continue
      if leaf.shape == (*shape[:-1], -(-shape[-1] // 8)):  # eight mask values per byte
        whole = shape[-1] % (8 * _parts(layout, spec[-1])) == 0
        return NamedSharding(layout.mesh, spec if whole else P(*spec[:-1], None))
    return layout.replicated

  return jax.tree_util.tree_map_with_path(place, state)


def _parts(layout: Layout, axis: str | None) -> int:
  """Returns the number of shards along a mesh axis."""
  return 1 if axis is None else layout.mesh.shape[axis]


def _spec(layout: Layout, path: Any, leaf: Any) -> P:
  """Returns the partition spec of one parameter.

  The first matching rule applies. Without one, a kernel's output axis is sharded over
  `model`, or its input axis if the outputs do not divide. With `fsdp`, the longest
  remaining axis that divides is sharded over `data`, unless the rule uses `data`.
  Vectors are replicated unless a rule matches.
  """
  # One mesh axis or None per axis of the parameter.
  name, sizes = path_string(path), layout.mesh.shape
  axes: list[str | None] = [None] * leaf.ndim
  for pattern, given in layout.rules:
    if re.search(pattern, name):
      if len(given) != leaf.ndim or any(
        axis is not None and n % sizes[axis]
        for axis, n in zip(given, leaf.shape, strict=False)
      ):
        raise _errors.ConfigError(
          f"mesh.rules[{pattern!r}] must name an axis of the mesh {dict(sizes)} or None"
          f" for each axis of {name} {leaf.shape}, and divide it; got {given}"
        )
      axes = list(given)
      break
  else:
    if sizes["model"] > 1 and is_kernel(name, leaf):
      fits = [i for i in (-1, -2) if leaf.shape[i] % sizes["model"] == 0]
      if fits:
        axes[fits[0]] = "model"
  if layout.fsdp and leaf.ndim > 1 and "data" not in axes:
    free = [
      i for i, n in enumerate(leaf.shape) if axes[i] is None and n % sizes["data"] == 0
    ]
    if free:
      axes[max(free, key=lambda i: leaf.shape[i])] = "data"
  return P(*axes)


def place(tree: PyTree, layout: Layout | None = None) -> PyTree:
  """Puts arrays on the devices of the run, with the sharding of restored checkpoints.

  Use it for all arguments of the compiled functions: committed and uncommitted arrays
  would each cause a compilation.

  Args:
    tree: arrays of NumPy or JAX.
    layout: the `Layout` returned by `make_layout`; None for one device.

  Returns:
    The tree, on one device or replicated over the mesh.
  """
  if layout is not None:
    return jax.device_put(tree, layout.replicated)
  device = jax.local_devices()[0]
  return jax.device_put(tree, jax.sharding.SingleDeviceSharding(device))


def with_shardings(layout: Layout | None, state: PyTree) -> PyTree:
  """Adds shardings to an abstract state.

  Args:
    layout: the `Layout` returned by `make_layout`; None for one device.
    state: an abstract state from `jax.eval_shape`.

  Returns:
    The abstract state with shardings; unchanged on one device.
  """
  if layout is None:
    return state
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    state,
    of_state(layout, state),
  )


def local_rows(layout: Layout, rows: int) -> tuple[int, int]:
  """Returns the range of a batch's rows that is on the devices of this process.

  Args:
    layout: the `Layout` returned by `make_layout`.
    rows: the number of rows of the whole batch, a multiple of `layout.shards`.

  Returns:
    `(start, stop)`.
  """
  held = layout.batch.addressable_devices_indices_map((rows,)).values()
  bounds = [slice_[0].indices(rows)[:2] for slice_ in held if slice_ is not None]
  starts, stops = np.array(bounds).T
  return int(starts.min()), int(stops.max())
