"""What the compiled programs hold: few bytes between devices, and no copies."""

import importlib.util
import math
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

SGD = optax.sgd(0.1, momentum=0.9)
# As fully sharded data parallelism, tensor parallelism, and both would have them.
SPECS = {
  "fsdp": P("data", None),
  "tp": P(None, "model"),
  "both": P("data", "model"),
  "stacked": P("data", None, "model"),
}
SHAPES = {
  "fsdp": (256, 96),
  "tp": (128, 160),
  "both": (320, 64),
  "stacked": (8, 64, 48),
}
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


# Every method of the contract table, and under each structure one that drops and grows,
# one that moves budget between layers and one that prunes, where they go together.
# The kernel of rank 3 is that of a convolution unless its layers are stacked.
TAPS = {"input_axes": {"stacked": sj.KernelAxes(1, 2)}}
DUE = {"density": 0.4, "update_every": 1} | TAPS
STRUCTURES = {
  "n_m": lambda: sj.n_m(2, 4),
  "block": lambda: sj.block((4, 4)),
  "channel": lambda: sj.channel(-1),
  "fan_in": lambda: sj.constant_fan_in(),
  "ablation": lambda: sj.constant_fan_in(ablation=0.3),
}
STACKED = {"density": 0.4, "update_every": 1, "stacked": "stacked"}
# Layers along the middle axis, and attention's heads and places, on several devices.
SCANNED = {"density": 0.4, "update_every": 1, "stacked": {"stacked": 1}}
HEADS = {"density": 0.4, "update_every": 1, "input_axes": {"stacked": 1}}
OTHERS = {
  "straight_through": lambda: sj.straight_through(SGD, **DUE),
  "sr_ste": lambda: sj.sr_ste(SGD, **DUE),
  "s_ste": lambda: sj.s_ste(SGD, **DUE),
  "gates": lambda: sj.continuous_sparsification(SGD, **DUE, end_step=1),
  "spartan": lambda: sj.spartan(SGD, **DUE, end_step=9),
  "top_kast": lambda: sj.top_kast(SGD, **DUE),
  # Retraction multiplies whole kernels, which is no selection.
  "isometric": lambda: sj.isometric(SGD, **DUE, retract=False),
  "drop_by_sign": lambda: sj.sparsify(
    SGD, sj.chain(sj.drop(sj.magnitude, 0.3, "sign"), sj.grow(sj.random)), **DUE
  ),
  "sparse_momentum_stacked": lambda: sj.sparse_momentum(SGD, **STACKED),
  "per_neuron_stacked": lambda: sj.sparse_momentum(SGD, **STACKED, per_neuron=True),
  "global_stacked": lambda: sj.global_magnitude(SGD, **STACKED, end_step=9),
  "sparse_momentum_scanned": lambda: sj.sparse_momentum(SGD, **SCANNED),
  "global_scanned": lambda: sj.global_magnitude(SGD, **SCANNED, end_step=9),
  "fan_in_scanned": lambda: sj.rigl(SGD, **SCANNED, structure=sj.constant_fan_in()),
  "fan_in_heads": lambda: sj.rigl(SGD, **HEADS, structure=sj.constant_fan_in()),
  "block_heads": lambda: sj.rigl(SGD, **HEADS, structure=sj.block((4, 4))),
  "n_m_heads": lambda: sj.rigl(SGD, **HEADS | {"density": 0.5}, structure=sj.n_m(2, 4)),
  "transposable": lambda: sj.rigl(
    SGD, **DUE | {"density": 0.5}, structure=sj.transposable_n_m(2, 4)
  ),
  "block_stacked": lambda: sj.rigl(SGD, **STACKED, structure=sj.block((4, 4))),
}
# What runs by default: each mechanism once. All others run under -m slow.
QUICK = (
  "sparse_momentum",
  "gradual_magnitude",
  "rigl/n_m",
  "sparse_momentum_stacked",
  "sparse_momentum_scanned",
  "fan_in_heads",
)


def _table(methods):
  """The optimizers by name, a mask update being due in their first step."""
  due = {"update_every": 1, "start_step": 0} | TAPS
  # Growth by paths multiplies whole masks.
  methods = [m for m in methods if m.name != "chts"]
  table = {str(m): lambda m=m: m(SGD, **due) for m in methods}
  table |= OTHERS
  for name, make in STRUCTURES.items():
    fields = DUE | {"density": make().density or 0.4}
    uses = {"rigl": sj.rigl}
    if name == "block":
      uses["sparse_momentum"] = sj.sparse_momentum
    if name != "ablation":
      uses["gradual_magnitude"] = sj.gradual_magnitude
    for method, function in uses.items():
      more = {"end_step": 9} if method == "gradual_magnitude" else {}
      table[f"{method}/{name}"] = lambda f=function, m=make, k=fields | more: f(
        SGD, structure=m(), **k
      )
  return table


def _programs():
  for name in _table(_harness().METHODS):
    for axis_type in (AxisType.Auto, AxisType.Explicit):
      quick = name in QUICK if axis_type == AxisType.Auto else name == QUICK[0]
      yield pytest.param(name, axis_type, marks=() if quick else pytest.mark.slow)


def _harness():
  """The table of methods, when tests are collected: fixtures come later."""
  file = pathlib.Path(__file__).with_name("conftest.py")
  spec: Any = importlib.util.spec_from_file_location("contract_table", file)
  module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# These share out what they grow among a layer's neurons, whose numbers lie on several
# devices and are put together: so many neurons at most, 8 bytes each.
PER_NEURON = ("sparse_momentum_modes", "per_neuron_stacked")
NEURONS = 8 * 48


# A selection's loops: over at most 8 bytes, and in each over 8 bits.
TRIPS = 8


def _traffic(text: str) -> int:
  """The bytes that collectives bring, those in loops as often as these may turn."""
  computations, total = _computations(text), 0
  todo = [("ENTRY", 1)]
  while todo:
    name, times = todo.pop()
    for line in computations[name]:
      total += times * sum(size for _, size in _collectives(line))
      inside = re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
      todo += [(callee, times * TRIPS) for callee in inside]
      callees = re.findall(
        r"(?:calls|true_computation|false_computation)=%?([\w.\-]+)", line
      )
      for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
        callees += [branch.strip().lstrip("%") for branch in branches.split(",")]
      todo += [(callee, times) for callee in callees]
  return total


def _step_text(name, axis_type):
  """The compiled step in which a mask update is due, and how many tensors it has."""
  tx, params = _table(_harness().METHODS)[name](), _params(axis_type)
  if name.endswith("_scanned"):  # the same layers along the middle axis
    mesh = params["stacked"].sharding.mesh
    place = NamedSharding(mesh, P(None, "data", "model"))
    params["stacked"] = jax.device_put(jnp.ones((64, 8, 48)), place)
  # New functions: what was compiled for another test may have taken the other branch.
  state = jax.jit(lambda p: tx.init(p))(params)
  step = jax.jit(lambda *x: tx.update(*x)).lower(params, state, params)
  return step.compile().as_text(), len(params)


@pytest.mark.parametrize(("name", "axis_type"), list(_programs()))
def test_only_counts_move_between_devices(name, axis_type, monkeypatch):
  """No kernel is gathered, and less than 16 KiB move a tensor."""
  # What accelerators run; CPUs count by columns first, which is faster there.
  monkeypatch.setattr(lax, "platform_dependent", lambda *x, default, **_: default(*x))
  text, tensors = _step_text(name, axis_type)
  found, moved = _collectives(text), _traffic(text)
  moves = name not in ("static_sparse", "dense", "sr_ste/n_m")
  assert bool(found) == moves, "a sharded selection cannot do without"
  for kind, size in found:
    # Numbers of stacked layers that lie on several devices are put together.
    together = 128 if name.endswith(("_stacked", "_scanned")) else 0
    together = 8 * NEURONS if name in PER_NEURON else together
    assert kind == "all-reduce" or size <= together, (kind, size)
  assert moved >= sum(size for _, size in found), "each is met where the program runs"
  assert moved < 16 * 1024 * tensors, moved


@pytest.mark.parametrize(
  ("name", "axis_type"),
  [
    ("gradual_magnitude", AxisType.Auto),
    pytest.param("gradual_magnitude", AxisType.Explicit, marks=pytest.mark.slow),
    pytest.param("sparse_momentum", AxisType.Auto, marks=pytest.mark.slow),
    pytest.param("sparse_momentum", AxisType.Explicit, marks=pytest.mark.slow),
    pytest.param("sparse_evolution", AxisType.Auto, marks=pytest.mark.slow),
    pytest.param("sparse_evolution", AxisType.Explicit, marks=pytest.mark.slow),
  ],
)
def test_cpus_only_move_counts_too(name, axis_type):
  found = _collectives(_step_text(name, axis_type)[0])
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
  step = jax.jit(step, donate_argnums=(0, 1)).lower(*inputs)
  compiled = step.compile()
  lines, conditionals = _every_step(compiled.as_text())
  shapes = "|".join(",".join(map(str, shape)) for shape in SHAPES.values())
  assert any(re.search(rf"\[({shapes})\]", line) for line in lines)
  copies = [x for x in lines if re.search(rf"= \w+\[({shapes})\]\S* copy", x)]
  assert copies == []
  assert conditionals <= 1
  assert conditionals == 1 or not method.moves
