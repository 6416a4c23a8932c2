"""Steps of the smaller program that move elements between values."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsejax.analysis.compaction._values import Step, Values, spread, take
from sparsejax.analysis.jaxpr._movement import RESHAPES
from sparsejax.analysis.jaxpr._program import Operation


def step_of(values: Values, operation: Operation) -> Step | None:
  """Returns the step of a move, or None if the operation itself can be repeated."""
  name, out = operation.name, operation.outputs[0]
  if name in ("concatenate", "stack"):
    return _concatenate(values, operation)
  if name in ("slice", "split"):
    return _slice(values, operation)
  if name == "pad":
    return _pad(values, operation)
  if name not in RESHAPES and name != "broadcast_in_dim":
    return None
  read = values.read(operation.inputs[0])
  if name in RESHAPES:

    def reshape(env, params, n):
      env[out] = read(env, params, n).reshape(values.shape(out, n))

    return reshape
  dims = operation.params["broadcast_dimensions"]

  def broadcast(env, params, n):
    x = read(env, params, n)
    env[out] = lax.broadcast_in_dim(x, values.shape(out, n), dims)

  return broadcast


def _slice(values: Values, operation: Operation) -> Step:
  """Rebuilds `slice` and `split` on the indices kept of source and outputs."""
  [source] = operation.inputs
  p, read = operation.params, values.read(source)
  kept, cuts = values.units.kept[source], []
  # Start and stride of each output along the axes that are cut.
  starts = {}
  if operation.name == "split":
    ends = np.cumsum(p["sizes"])
    for out, size, end in zip(operation.outputs, p["sizes"], ends, strict=True):
      starts[out] = {p["axis"]: (end - size, 1)}
  else:
    strides = p["strides"] or (1,) * len(kept)
    rows = enumerate(zip(p["start_indices"], strides, strict=True))
    starts[operation.outputs[0]] = dict(rows)
  # Translate the kept indices of the output into indices of what is kept of the source.
  for out, begins in starts.items():
    if values.empty(out):
      continue
    places = {}
    for axis, (start, stride) in begins.items():
      if axis in values.facts.batch[source]:
        if axis not in values.facts.batch[out] or start or stride > 1:
          raise ValueError("compact cannot follow a 'slice' of the batch.")
        continue
      wanted = start + stride * values.units.kept[out][axis]
      places[axis] = np.searchsorted(kept[axis], wanted)
    cuts.append((out, places))

  def step(env, params, n):
    x = read(env, params, n)
    for out, places in cuts:
      env[out] = x
      for axis, index in places.items():
        env[out] = take(env[out], index, axis)

  return step


def _pad(values: Values, operation: Operation) -> Step:
  """Rebuilds `pad` with the kept source elements and the kept padding."""
  source, fill = operation.inputs
  out, config, places = operation.outputs[0], [], {}
  # Per axis: the kept source indices that remain, and how many kept indices lie in the
  # padding below and above. Interior padding is supported only where nothing is
  # removed.
  for axis, (low, high, interior) in enumerate(operation.params["padding_config"]):
    before, after = values.units.kept[source][axis], values.units.kept[out][axis]
    low, size = int(low), values.facts.shapes[source][axis]
    if axis in values.facts.batch[source]:
      if low or high or interior:
        raise ValueError("compact cannot follow a 'pad' of the batch.")
      config.append((0, 0, 0))
    elif interior:
      full = len(before) == size and len(after) == values.facts.shapes[out][axis]
      if not full:
        raise ValueError("compact cannot remove units that a 'pad' puts apart.")
      config.append((low, int(high), int(interior)))
    else:
      index = after - low
      inside = index[(index >= 0) & (index < size)]
      places[axis] = np.searchsorted(before, inside)
      below, above = np.count_nonzero(index < 0), np.count_nonzero(index >= size)
      config.append((int(below), int(above), 0))
  read = values.read(source)
  value = jnp.asarray(values.facts.array(fill)).reshape(())
  # If no source element is kept, only the padding is left.
  if values.empty(source):  # the border alone is left

    def border(env, params, n):
      env[out] = jnp.broadcast_to(value, values.shape(out, n))

    return border

  def step(env, params, n):
    x = read(env, params, n)
    for axis, index in places.items():
      x = take(x, index, axis)
    env[out] = lax.pad(x, value, config) if np.any(config) else x

  return step


def _concatenate(values: Values, operation: Operation) -> Step:
  """Rebuilds `concatenate` and `stack` from the kept parts of the operands."""
  out, p = operation.outputs[0], operation.params
  stack = operation.name == "stack"
  axis = p["axis" if stack else "dimension"]
  kept, parts, end = values.units.kept[out], [], 0
  # Find each operand's share of the kept indices; one without any is left out.
  for i in operation.inputs:
    shape = values.facts.shape(i)
    start, end = end, end + (1 if stack else shape[axis])
    mine = kept[axis][(kept[axis] >= start) & (kept[axis] < end)] - start
    if not len(mine):
      continue
    sets = [s for a, s in enumerate(kept) if not (stack and a == axis)]
    if not stack:
      sets[axis] = mine
    if values.facts.is_constant(i):
      parts.append((values.constant(i, sets), sets))
    else:
      parts.append((values.read(i), None))
  # Constants are stored for one example and repeated along the axes that grow with the
  # batch.
  batch = values.facts.batch[out]
  grows = [a for a in range(len(kept)) if a in batch and not (stack and a == axis)]

  def step(env, params, n):
    arrays = []
    for read, sets in parts:
      x = read(env, params, n)
      if sets is not None:
        shape = [len(s) for s in sets]
        for a in grows:
          shape[a - (stack and a > axis)] *= n
        x = spread(jnp.asarray(x), tuple(shape))
      arrays.append(x)
    join = jnp.stack if stack else jnp.concatenate
    env[out] = join(arrays, axis) if stack or len(arrays) > 1 else arrays[0]

  return step
