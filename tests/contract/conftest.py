"""The tables through which every method goes. A new method is one line here.

A row takes about a second to compile, and there are thousands. By default a small
selection runs in which every method, optimizer, container and dtype occurs.
SPARSEJAX_CONTRACT=pairs runs one in which every pair of them does,
SPARSEJAX_CONTRACT=full the whole product of the methods with the optimizers, containers
and dtypes in `PRODUCT`.
"""

import functools
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx

import sparsejax as sj

# Mask updates fall due after steps 3 and 5 of the 7 that every row runs.
SCHEDULE = {"update_every": 2, "start_step": 1, "end_step": 5}
STEPS, DUE = 7, (3, 5)
# Every container holds these two kernels and, maybe, leaves that stay dense.
KERNELS = ((6, 5), (5, 4))
# The same as attention's: inputs to heads, heads to outputs.
ATTENTION = ((5, 3, 2), (2, 2, 5))


@dataclass(frozen=True, eq=False)
class Method:
  """A method and what it promises on the two kernels."""

  name: str
  kwargs: dict[str, Any] = field(default_factory=dict)
  totals: tuple[int, int, int] = (20, 20, 20)  # at first, after step 3, after step 5
  moves: tuple[int, ...] | None = DUE  # after which steps; None: maybe, but when due
  masked: bool = True  # the inner optimizer sees masked gradients
  late: bool = False  # ... by the masks from before the step
  fresh: bool = False  # grown weights start from a value of their own
  around: Callable = lambda inner: inner  # what the method makes of the inner optimizer
  suffix: str = ""

  def __call__(self, inner, **kwargs):
    kwargs = {"density": 0.4} | SCHEDULE | self.kwargs | kwargs
    return getattr(sj, self.name)(inner, **kwargs)

  def __str__(self):
    return self.name + self.suffix


def _loose(f):
  """Lets optax promote dtypes, which it needs; everything of ours stays strict."""

  @functools.wraps(f)
  def wrapped(*args, **kwargs):
    with jax.numpy_dtype_promotion("standard"):
      return f(*args, **kwargs)

  return wrapped


METHODS = [
  Method("sparse_momentum", masked=False),
  Method("sparse_evolution"),
  Method("rigl", {"drop_fraction": _loose(optax.cosine_decay_schedule(0.5, 20))}),
  Method("static_sparse", moves=()),
  Method("gradual_magnitude", totals=(50, 24, 20)),
  Method("dense", totals=(50, 50, 50), moves=(), masked=False),
  Method("snfs"),
  Method("dsr", {"drop_fraction": 0.5, "threshold": 0.5}),
  Method("deep_r", {"l1": 0.0}, moves=None, late=True, fresh=True),
  Method("one_shot", totals=(50, 20, 20), moves=(3,)),
  Method("global_magnitude", totals=(50, 24, 20)),
  Method("global_saliency", totals=(50, 24, 20)),
  Method("movement_pruning", totals=(50, 24, 20)),
  Method("granet", totals=(50, 24, 20)),
  Method("mest", {"drop_fraction": 0.5}, totals=(20, 30, 20)),
  Method("mest", {"soft_bound": False}, suffix="_hard"),
  Method("chts"),
  Method("powerpropagation", totals=(50, 24, 20), around=sj.power_updates),
  Method("ac_dc", totals=(50, 20, 20), moves=(3,)),
  Method(
    "rigl",
    {"grow_init": "random", "accumulate_gradients": True, "drop_noise": 0.1},
    fresh=True,
    suffix="_options",
  ),
  Method(
    "sparse_momentum",
    {"drop_scope": "global", "redistribute_by": sj.nonzeros, "per_neuron": True},
    masked=False,
    suffix="_modes",
  ),
]


# One that steps first, one that masks first, one that never moves.
QUICK = [METHODS[0], METHODS[2], METHODS[3]]


def _loosely(inner):
  inner = optax.with_extra_args_support(inner)
  return optax.GradientTransformationExtraArgs(inner.init, _loose(inner.update))


def _inside(inner):
  return lambda sparse: sparse(_loosely(inner))


def _labels(params):
  return jax.tree.map(lambda p: "kernel" if p.ndim > 1 else "other", params)


def _split(kernels):
  return optax.partition(
    {"kernel": kernels, "other": _loosely(optax.adam(0.1))}, _labels
  )


def _packed(sparse, inner):
  # Alone, the inner optimizer has no masks to pack.
  tx = sparse(inner)
  return sj.packed_masks(tx) if isinstance(sparse, Method) else tx


SGD = optax.sgd(0.1, momentum=0.9)
# From a method to an optimizer: most hold it outside, some wrap it.
OPTIMIZERS: dict[str, Callable] = {
  "momentum": _inside(SGD),
  "adamw": _inside(optax.adamw(0.01, weight_decay=0.1)),
  "sgd": _inside(optax.sgd(0.1)),
  "nesterov": _inside(optax.sgd(0.1, momentum=0.9, nesterov=True)),
  "adam": _inside(optax.adam(0.01)),
  "lion": _inside(optax.lion(0.01, weight_decay=0.1)),
  "rmsprop": _inside(optax.rmsprop(0.01)),
  "rmsprop_momentum": _inside(optax.rmsprop(0.01, momentum=0.9)),
  "adafactor": _inside(optax.adafactor(0.01, min_dim_size_to_factor=4)),
  "adafactor_momentum": _inside(optax.adafactor(0.01, momentum=0.9)),
  "muon": _inside(optax.contrib.muon(0.01, ns_steps=2, weight_decay=0.1)),
  "clip_decay_sgd": _inside(
    optax.chain(
      optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optax.sgd(0.1)
    )
  ),
  # Injected, b2 = 0.999 would be 1 in bfloat16.
  "inject_hyperparams": _inside(
    optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps"))(0.01)
  ),
  "apply_if_finite": _inside(optax.apply_if_finite(SGD, 3)),
  "multi_steps_inside": _inside(
    optax.MultiSteps(SGD, every_k_schedule=2).gradient_transformation()
  ),
  "multi_steps_outside": lambda sparse: _loosely(
    optax.MultiSteps(sparse(SGD), every_k_schedule=2).gradient_transformation()
  ),
  "partition_inside": _inside(_split(SGD)),
  "partition_outside": lambda sparse: _split(sparse(SGD)),
  "packed_outside": lambda sparse: _packed(sparse, _loosely(SGD)),
  "chain_outside": lambda sparse: optax.chain(optax.clip(1.0), sparse(SGD)),
}


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["body", "head"], meta_fields=[]
)
@dataclass
class Net:
  """A params tree that is a dataclass."""

  body: Any
  head: Any


class _Linen(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.Dense(KERNELS[0][1])(linen.Embed(7, KERNELS[0][0])(x))
    return linen.Dense(KERNELS[1][1])(linen.LayerNorm()(x))


class _NNX(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.layers = nnx.List([nnx.Linear(*s, rngs=rngs) for s in KERNELS])
    self.norm = nnx.LayerNorm(KERNELS[1][1], rngs=rngs)


def _kernels():
  return [_normal(i, shape) for i, shape in enumerate(KERNELS)]


def _normal(seed, shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _nested():
  w0, w1 = _kernels()
  layers = [{"kernel": w0, "bias": jnp.ones(5)}, {"kernel": w1, "bias": jnp.ones(4)}]
  norm = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
  return {"layers": layers, "bn": norm, "embed": {"embedding": _normal(9, (7, 6))}}


def _attention():
  query, out = (_normal(i, shape) for i, shape in enumerate(ATTENTION))
  return {
    "query": {"kernel": query, "bias": jnp.ones((3, 2))},
    "out": {"kernel": out, "bias": jnp.ones(5)},
  }


CONTAINERS: dict[str, Callable] = {
  "dict": lambda: dict(zip(("body", "head"), _kernels(), strict=True)) | {"b": _b()},
  "tuple": lambda: (*_kernels(), _b()),
  "list": lambda: [_b(), *_kernels()],
  "nested": _nested,
  "dataclass": lambda: Net(*_kernels()),
  "array": lambda: _normal(0, (10, 5)),
  "nnx": lambda: nnx.state(_NNX(), nnx.Param),
  "attention": _attention,
  "linen": lambda: _Linen().init(jax.random.key(0), jnp.zeros((1,), jnp.int32)),
}


def _b():
  return jnp.ones(4)


class Row(NamedTuple):
  """One line of the contract: a method, an optimizer, a container, a dtype."""

  method: Method
  optimizer: str = "momentum"
  container: str = "dict"
  dtype: str = "float32"

  def __str__(self):
    return "-".join((str(self.method), *self[1:]))


# Of the params and the gradients; the dtype of the gradients stands after a slash where
# it is another one.
DTYPES = ("float32", "bfloat16")
# What every method is promised to go together with.
PRODUCT = (
  (
    "momentum",
    "adamw",
    "lion",
    "muon",
    "inject_hyperparams",
    "multi_steps_outside",
    "partition_outside",
  ),
  ("dict", "tuple", "nnx"),
  DTYPES,
)
SELECTION = os.environ.get("SPARSEJAX_CONTRACT", "quick")


def rows() -> list[Row]:
  """The rows that the environment asks for."""
  if SELECTION == "full":
    return [Row(*row) for row in itertools.product(METHODS, *PRODUCT)]
  factors = METHODS, tuple(OPTIMIZERS), tuple(CONTAINERS), DTYPES
  if SELECTION == "pairs":
    return [Row(*row) for row in _pairs(factors)]
  if SELECTION != "quick":
    raise ValueError(
      f"SPARSEJAX_CONTRACT must be quick, pairs or full, got {SELECTION!r}."
    )
  # All of each factor, in step; dtypes change once a turn of the containers, or some
  # container would see only one of them.
  turns = max(len(factor) for factor in factors)
  quick = []
  for i in range(turns):
    places = i, i, i, i + i // len(CONTAINERS)
    quick.append(Row(*(f[p % len(f)] for f, p in zip(factors, places, strict=True))))
  # Gradients of a narrower dtype: an optimizer whose updates are narrow too, and one
  # whose momentum is as wide as the params.
  return [
    *quick,
    Row(METHODS[2], "sgd", "nested", "float32/bfloat16"),
    Row(METHODS[0], "momentum", "linen", "float32/bfloat16"),
  ]


def _pairs(factors):
  """Rows that hold every pair of values of two factors, chosen greedily."""
  ways = list(itertools.combinations(range(len(factors)), 2))
  left = {
    (a, b, x, y)
    for a, b in ways
    for x in range(len(factors[a]))
    for y in range(len(factors[b]))
  }
  every = list(itertools.product(*(range(len(f)) for f in factors)))
  chosen = []
  while left:
    best, most = None, 0
    for row in every:
      gain = sum((a, b, row[a], row[b]) in left for a, b in ways)
      if gain > most:
        best, most = row, gain
      if most == len(ways):
        break
    left -= {(a, b, best[a], best[b]) for a, b in ways}
    chosen.append(tuple(f[i] for f, i in zip(factors, best, strict=True)))
  return chosen


class Step(NamedTuple):
  """What one step did, on the host: flat lists of the trees' leaves."""

  params: list[np.ndarray]
  updates: list[np.ndarray]
  after: list[np.ndarray]
  bare: list[np.ndarray]  # what the inner optimizer alone would have done
  masks: list[np.ndarray]
  budgets: list[int]


class Run(NamedTuple):
  """A row's whole run."""

  row: Row
  tx: optax.GradientTransformationExtraArgs
  program: Callable  # one compiled step of it and of the inner optimizer alone
  start: tuple[Any, Any, Any]  # params, state, and the state of the inner optimizer
  end: tuple[Any, Any]
  steps: list[Step]
  every: int  # calls of update per step, for `optax.MultiSteps` outside
  traces: int


def is_kernel(leaf) -> bool:
  """Whether a leaf is one of the table's kernels, known by its shape alone."""
  return leaf.shape in (*KERNELS, *ATTENTION, (10, 5))


def dtypes(row):
  """The dtypes of a row's params and gradients."""
  return tuple(map(jnp.dtype, (row.dtype.split("/") * 2)[:2]))


def train(row: Row) -> Run:
  """Runs a row once, in one compiled step, for all facts that are checked on it."""
  wrap = OPTIMIZERS[row.optimizer]
  tx, alone = wrap(row.method), wrap(row.method.around)
  traces = 0

  def step(params, state, bare, grads):
    nonlocal traces
    traces += 1
    before = sj.masks(state)
    updates, state = tx.update(grads, state, params, not_known=jnp.float32(0))
    masks = before if row.method.late else sj.masks(state)
    seen = sj.apply_masks(grads, masks) if row.method.masked else grads
    expected, bare = alone.update(seen, bare, params)
    after = _loose(optax.apply_updates)(params, updates)
    return after, state, bare, updates, expected

  dtype, grad_dtype = dtypes(row)
  params = jax.tree.map(lambda p: p.astype(dtype), CONTAINERS[row.container]())
  state, bare = tx.init(params), alone.init(params)
  start, steps = (params, state, bare), []
  # The update must be the inner one to the last bit: XLA's optimizations approximate a
  # reciprocal root, and excess precision leaves out the rounding of a narrower update.
  options = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_allow_excess_precision": False,
  }
  compiled = jax.jit(step, compiler_options=options)
  every = 2 if row.optimizer == "multi_steps_outside" else 1
  for grads in gradients(params, STEPS * every, grad_dtype):
    before = params
    params, state, bare, updates, expected = compiled(params, state, bare, grads)
    record = (before, updates, params, expected, sj.masks(state))
    leaves = (jax.tree.leaves(jax.device_get(tree)) for tree in record)
    steps.append(Step(*leaves, budgets=budgets(state)))
  return Run(row, tx, compiled, start, (params, state), steps, every, traces)


def gradients(params, number, dtype):
  """Yields trees of random gradients."""
  rng = np.random.default_rng(1)
  draw = lambda p: jnp.asarray(rng.normal(size=p.shape), dtype)
  for _ in range(number):
    yield jax.tree.map(draw, params)


def budgets(state) -> list[int]:
  """The budgets in a nested optimizer state."""
  is_sparse = lambda x: isinstance(x, sj.SparseState)
  [found] = filter(is_sparse, jax.tree.leaves(state, is_leaf=is_sparse))
  return [int(b) for b in jax.tree.leaves(found.budgets)]


def pytest_generate_tests(metafunc):
  """Gives every test that asks for a `row` or a `method` the whole table."""
  tables = {"row": rows, "method": lambda: METHODS if SELECTION != "quick" else QUICK}
  for name, table in tables.items():
    if name in metafunc.fixturenames:
      # Scoped by module, the tests of one row follow each other and share its run.
      metafunc.parametrize(name, table(), ids=str, scope="module")


@pytest.fixture(scope="module")
def run(row):
  """The run of a row: each test checks one fact on it."""
  return train(row)


@pytest.fixture(scope="session")
def harness():
  """This module: with `importmode=importlib` tests cannot import it."""
  return sys.modules[__name__]
