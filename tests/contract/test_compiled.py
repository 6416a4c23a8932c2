"""What the compiled programs hold: few bytes between devices, and no copies."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

SGD = optax.sgd(0.1, momentum=0.9)
# As fully sharded data parallelism, tensor parallelism, and both would have them.
SPECS = {"fsdp": P("data", None), "tp": P(None, "model"), "both": P("data", "model")}
SHAPES = {"fsdp": (256, 96), "tp": (128, 160), "both": (320, 64)}
COLLECTIVE = re.compile(
  r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
  r"collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s16": 2, "u16": 2, "f16": 2}
ON_EVERY_AXIS = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])


def _params(axis_type):
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  return {
    name: jax.device_put(jnp.ones(SHAPES[name]), NamedSharding(mesh, spec))
    for name, spec in SPECS.items()
  }


def _collectives(text: str) -> list[tuple[str, int]]:
  """Every collective of a compiled program, with the bytes of its result."""
  found = []
  for line in text.splitlines():
    match = COLLECTIVE.search(line)
    if match:
      shapes = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", line[: match.start()])
      sizes = [
        BYTES.get(dtype, int(re.sub(r"\D", "", dtype) or 0) // 8)
        * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in shapes
      ]
      found.append((match[1], sum(sizes)))
  return found


def test_collectives_are_parsed():
  text = """
  %a = (s32[2]{0}, u16[3,4]{1,0}) all-reduce(%x, %y), channel_id=1
  ROOT %b = f32[64,8]{1,0} all-gather(%a), dimensions={0}
  %c = f32[] add(%all-reduce, %b)
  """
  assert _collectives(text) == [("all-reduce", 8 + 24), ("all-gather", 2048)]


@ON_EVERY_AXIS
@pytest.mark.parametrize(
  "name", ["sparse_momentum", "sparse_evolution", "gradual_magnitude"]
)
def test_only_counts_move_between_devices(name, axis_type, harness):
  [method] = [m for m in harness.METHODS if str(m) == name]
  tx, params = method(SGD), _params(axis_type)
  step = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
  found = _collectives(step.as_text())
  assert found, "a sharded selection without any collective cannot be right"
  assert {kind for kind, _ in found} == {"all-reduce"}
  assert max(size for _, size in found) < 16 * 1024


@ON_EVERY_AXIS
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_masks_and_moments_lie_where_their_weights_lie(axis_type, compiled, harness):
  params = _params(axis_type)
  for inner in (SGD, optax.sgd(0.1)):  # without momentum, an average is kept
    tx = harness.METHODS[0](inner)
    state = (jax.jit(tx.init) if compiled else tx.init)(params)
    for name, weight in params.items():
      tensors = [x for x in jax.tree.leaves(state) if x.shape == weight.shape]
      assert len(tensors) == 2
      for x in tensors:
        assert x.sharding.is_equivalent_to(weight.sharding, x.ndim), (name, x.dtype)


def _computations(text: str) -> dict[str, list[str]]:
  """The lines of each computation of an HLO module; the entry's under `ENTRY`."""
  found, name = {}, None
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
    if head:
      name = "ENTRY" if head[1] else head[2]
      found[name] = []
    elif name:
      found[name].append(line)
  return found


def _every_step(text: str) -> tuple[list[str], int]:
  """The lines that run when no mask update is due, and the conditionals met."""
  computations, lines, conditionals = _computations(text), [], 0
  todo = ["ENTRY"]
  while todo:
    for line in computations[todo.pop()]:
      lines.append(line)
      callees = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
      if " conditional(" in line:
        conditionals += 1
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        if branches:
          callees = [branches[1].split(",")[0].strip().lstrip("%")]
        else:
          callees = re.findall(r"false_computation=%?([\w.\-]+)", line)
      todo += callees
  return lines, conditionals


@pytest.mark.parametrize("optimizer", [SGD, optax.adamw(1e-3)], ids=["sgd", "adamw"])
def test_a_step_between_mask_updates_copies_nothing(method, optimizer):
  tx = method(optimizer)
  params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}

  def step(params, state, grads):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
      updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  inputs = params, tx.init(params), params
  step = jax.jit(step, donate_argnums=(0, 1)).lower(*inputs).compile()
  lines, conditionals = _every_step(step.as_text())
  shapes = "|".join(f"{rows},{columns}" for rows, columns in SHAPES.values())
  assert any(re.search(rf"\[({shapes})\]", line) for line in lines)
  copies = [x for x in lines if re.search(rf"= \w+\[({shapes})\]\S* copy", x)]
  assert copies == []
  assert conditionals <= 1
  assert conditionals == 1 or not method.moves
