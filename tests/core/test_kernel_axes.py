"""Inputs, outputs and stacks of kernels: by real models' parameters, and declared."""

import itertools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax.core import LayerAxes
from sparsejax.core._kernel_axes import layer_axes, layer_shapes, plain_axes

X = jnp.ones((2, 6, 12))


def sides(params, **kwargs):
  """(inputs, outputs) of each kernel by its path."""
  chosen = [
    leaf.ndim > 1 and "bias" not in jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
  axes = layer_axes(params, chosen, **kwargs)
  return {a.path: (a.inputs, a.outputs) for a in axes}


class _Linen(linen.Module):
  bias: bool = True

  @linen.compact
  def __call__(self, x):
    x = linen.MultiHeadDotProductAttention(4, use_bias=self.bias, name="attention")(x)
    x = linen.Conv(12, (3,), name="conv1d")(x)
    x = linen.DenseGeneral((4, 3), name="to_heads")(x)
    x = linen.DenseGeneral(12, axis=(-2, -1))(x)
    return linen.Dense(5, name="head")(x)


class _NNX(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.attention = nnx.MultiHeadAttention(4, 12, rngs=rngs)
    self.up = nnx.LinearGeneral(12, (4, 3), rngs=rngs)
    self.conv = nnx.Conv(12, 12, (3,), rngs=rngs)


@pytest.mark.parametrize("bias", [True, False])
def test_flax_linen(bias):
  model = _Linen(bias)
  params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
  into, out = ((0,), (1, 2)), ((0, 1), (2,))
  assert sides(params) == {
    "attention/query/kernel": into,
    "attention/key/kernel": into,
    "attention/value/kernel": into,
    "attention/out/kernel": out,
    "conv1d/kernel": ((1,), (2,)),
    "to_heads/kernel": into,
    "DenseGeneral_0/kernel": out,
    "head/kernel": ((0,), (1,)),
  }


def test_flax_nnx():
  params = nnx.state(nnx.eval_shape(_NNX), nnx.Param)
  found = sides(params)
  assert found == {
    "attention/query/kernel": ((0,), (1, 2)),
    "attention/key/kernel": ((0,), (1, 2)),
    "attention/value/kernel": ((0,), (1, 2)),
    "attention/out/kernel": ((0, 1), (2,)),
    "up/kernel": ((0,), (1, 2)),
    "conv/kernel": ((1,), (2,)),
  }


def test_haiku():
  def model(x):
    init = hk.initializers.Constant(0.1)
    x = hk.MultiHeadAttention(2, 6, w_init=init)(x, x, x)
    x = hk.Conv1D(8, 3)(x)
    return hk.Conv2D(4, 3)(x[..., None])

  params = jax.eval_shape(hk.transform(model).init, jax.random.key(0), X)
  found = sides(params)
  assert found.pop("conv1_d/w") == ((1,), (2,))
  assert found.pop("conv2_d/w") == ((2,), (3,))
  assert list(found.values()) == [((0,), (1,))] * 4


def test_equinox_puts_outputs_first():
  keys = jax.random.split(jax.random.key(0), 4)
  models = {
    "linear": eqx.nn.Linear(12, 5, key=keys[0]),
    "square": eqx.nn.Linear(12, 12, use_bias=False, key=keys[0]),
    "conv": eqx.nn.Conv2d(4, 8, 3, key=keys[1]),
    "attention": eqx.nn.MultiheadAttention(2, 12, key=keys[2]),
    "cell": eqx.nn.GRUCell(12, 5, key=keys[3]),
  }
  params = eqx.filter(models, eqx.is_inexact_array)
  chosen = [
    leaf.ndim > 1 and leaf.shape[1:] != (1, 1) for leaf in jax.tree.leaves(params)
  ]
  axes = layer_axes(params, chosen)
  assert {(a.inputs, a.outputs) for a in axes} == {((1,), (0,))}
  [conv] = [a for a in axes if a.path == "conv/weight"]
  assert conv.matrix == (3, 3, 4, 8)


def test_a_bias_decides_against_the_name():
  """A kernel (in, out) called `weight`, and a convolution called `query`."""
  weight = {"weight": jnp.ones((6, 4)), "bias": jnp.ones(4)}
  assert sides(weight) == {"weight": ((0,), (1,))}
  weight["bias"] = jnp.ones(6)
  assert sides(weight) == {"weight": ((1,), (0,))}
  query = {"query": {"kernel": jnp.ones((3, 6, 4)), "bias": jnp.ones(4)}}
  assert sides(query) == {"query/kernel": ((), ())}


UNKNOWN = {
  "proj/kernel": (8, 4, 4),  # an output kernel without a bias, or anything
  "DenseGeneral_0/kernel": (8, 4, 4),
  "Einsum_0/kernel": (8, 4),
  "kv_einsum/w": (2, 4, 8, 4),
  "DenseGeneral_1/kernel": (2, 4, 8, 4),
  "out/kernel": (8, 4, 4),  # beside no query
  "layers/weight": (3, 8, 8),
}


@pytest.mark.parametrize("path", list(UNKNOWN))
def test_what_nobody_declared_is_refused_by_name(path):
  module, leaf = path.split("/")
  params = {module: {leaf: jnp.ones(UNKNOWN[path])}}
  for kwargs in (
    {"structure": sj.constant_fan_in()},
    {"structure": sj.channel()},
    {"distribution": sj.erk},
    {"distribution": sj.erdos_renyi},
  ):
    with pytest.raises(ValueError, match=f"(?s)(?=.*{path})(?=.*input_axes)"):
      sj.rigl(optax.sgd(0.1), 0.25, **kwargs).init(params)
  # What needs not know takes it.
  state = sj.rigl(optax.sgd(0.1), 0.25).init(params)
  assert int(sj.masks(state)[module][leaf].sum()) * 4 == np.prod(UNKNOWN[path])
  axes = {path: sj.KernelAxes(-2, -1)}
  sj.rigl(optax.sgd(0.1), 0.25, structure=sj.constant_fan_in(), input_axes=axes).init(
    params
  )


CONVOLUTIONS = {  # without a bias; inputs and outputs last, or first if `weight`
  "Conv_0/kernel": (41, 11, 1, 32),
  "conv2_d/w": (3, 5, 16, 32),
  "conv_init/kernel": (7, 7, 3, 64),
  "block1/unit1/conv_proj/kernel": (1, 1, 64, 256),
  "proj/kernel": (1, 1, 16, 32),
  "shortcut/kernel": (1, 1, 16, 32),
  "layer1_0/kernel": (3, 3, 16, 16),
  "stem/kernel": (4, 4, 3, 96),
  "embedding/kernel": (16, 16, 3, 768),
  "downsample/kernel": (2, 3, 96, 192),
  "dwconv/kernel": (7, 7, 1, 96),
  "mixed/0/kernel": (1, 7, 16, 16),
  "temporal/kernel": (3, 1, 1, 8, 8),
  "block/kernel": (3, 3, 3, 8, 8),
  "attention/to_qkv/kernel": (1, 1, 64, 96),
  "conv_qkv/kernel": (3, 3, 16, 48),
  "value/w": (1, 1, 16, 4),
  "conv": (3, 5, 16, 32),
  "w": (3, 3, 16, 32),
  "0/0": (5, 5, 1, 32),
  "stages.0.blocks.0.conv_dw.weight": (96, 1, 7, 7),
  "layer1.0.downsample.0.weight": (256, 64, 1, 1),
  "features.0.weight": (64, 3, 11, 11),
  "attention.to_q.weight": (32, 16, 1, 1),
  "patch_embed.proj.weight": (768, 3, 16, 16),
}


def _alone(paths):
  """Each leaf as a tree of its own: a neighbor could tell what it is."""
  for path, shape in paths.items():
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in reversed(path.split("/")):
      tree = {name: tree}
    yield path, len(shape), tree


def test_convolutions_are_told_by_name_or_shape():
  for path, rank, tree in _alone(CONVOLUTIONS):
    first = path.endswith("weight")
    expected = ((1,), (0,)) if first else ((rank - 2,), (rank - 1,))
    assert sides(tree) == {path: expected}, path


def test_a_bias_of_one_number_per_output_says_convolution():
  for name, shape in {"v": (3, 5, 8, 16), "query": (3, 3, 8, 16)}.items():
    tree = {name: {"w": jnp.ones(shape), "b": jnp.ones(16)}}
    axes = layer_axes(tree, [False, True])
    assert [(a.inputs, a.outputs) for a in axes] == [((2,), (3,))]
  torch = {"v.weight": jnp.ones((8, 4, 3, 5)), "v.bias": jnp.ones(8)}
  [axes] = layer_axes(torch, [False, True])
  assert (axes.inputs, axes.outputs) == ((1,), (0,))


NO_CONVOLUTIONS = {
  "qkv/kernel": (64, 3, 4, 16),
  "query/kernel": (16, 3, 4, 4),  # stacked by nn.scan along axis 1
  "q_proj/kernel": (4, 4, 4, 4),
  "up/kernel": (64, 3, 4, 16),
  "up/weight": (64, 3, 4, 16),
  "qkv/weight": (64, 3, 4, 4),
  "Dense_0/kernel": (4, 4, 8, 8),  # stacked by two scans
  "experts/w": (4, 4, 8, 8),
  "blocks/kernel": (4, 3, 3, 8, 8),  # a stacked convolution
}


def test_what_may_be_no_convolution_is_refused():
  for path, _, tree in _alone(NO_CONVOLUTIONS):
    assert sides(tree) == {path: ((), ())}, path
  # Eight layers of eight heads look like a kernel of 8 x 8, and `k` means little.
  for out, query, key in [
    ("out", "query", "key"),
    ("o", "q", "k"),
    ("proj", "qkv", "v"),
  ]:
    kernel, heads = jnp.ones((8, 8, 4, 32)), jnp.ones((8, 32, 8, 4))
    tree = {out: {"kernel": kernel}, query: {"kernel": heads}, key: {"kernel": kernel}}
    assert set(sides(tree).values()) == {((), ())}
    assert sides({"k": kernel}) == {"k": ((2,), (3,))}


def test_attention_without_a_bias_is_never_counted_as_a_convolution():
  """16 inputs of 64 for each of 3 * 4 * 16 neurons, once its axes are declared."""
  params = {"qkv": {"kernel": jax.random.normal(jax.random.key(0), (64, 3, 4, 16))}}
  for structure in (sj.constant_fan_in(), sj.n_m(1, 4)):
    with pytest.raises(ValueError, match="'qkv/kernel'"):
      sj.rigl(optax.sgd(0.1), 0.25, structure=structure).init(params)
  with pytest.raises(ValueError, match="'qkv/kernel'"):
    sj.rigl(optax.sgd(0.1), 0.25, distribution=sj.erk).init(params)
  tx = sj.rigl(
    optax.sgd(0.1), 0.25, structure=sj.constant_fan_in(), input_axes={"qkv": 0}
  )
  assert (sj.masks(tx.init(params))["qkv"]["kernel"].sum(0) == 16).all()


def test_names_of_pytorch_separated_by_dots():
  tree = {"fc.weight": jnp.ones((6, 6)), "fc.bias": jnp.ones(6)}
  assert sides(tree) == {"fc.weight": ((1,), (0,))}
  tree = {"fc.weight": jnp.ones((6, 4)), "fc.bias": jnp.ones(4)}
  assert sides(tree) == {"fc.weight": ((0,), (1,))}


def test_per_neuron_growth_refuses_what_nobody_declared():
  params = {"proj": {"kernel": jnp.ones((8, 4, 4))}}
  with pytest.raises(ValueError, match=r"'proj/kernel'.*grow_per_neuron"):
    sj.sparse_momentum(optax.sgd(0.1, 0.9), 0.25, per_neuron=True).init(params)
  with pytest.raises(ValueError, match=r"'proj/kernel'.*initialize_grown"):
    sj.rigl(optax.sgd(0.1), 0.25, grow_init="random").init(params)
  with pytest.raises(ValueError, match=r"'proj/kernel'.*isometric"):
    sj.isometric(optax.sgd(0.1), 0.25).init(params)


@pytest.mark.parametrize(
  ("declared", "expected"),
  [
    ({"proj": 0}, ((0,), (1, 2))),
    ({"proj": -3}, ((0,), (1, 2))),
    ({"proj": (1, 0)}, ((0, 1), (2,))),
    ({"nothing|proj": [0, 2]}, ((0, 2), (1,))),
    ({"proj": sj.KernelAxes(1, 2)}, ((1,), (2,))),
    (lambda path, leaf: 0 if "proj" in path else None, ((0,), (1, 2))),
  ],
)
def test_axes_are_declared(declared, expected):
  params = {"proj": {"kernel": jnp.ones((8, 4, 6))}, "head": jnp.ones((4, 5))}
  assert sides(params, input_axes=declared) == {
    "head": ((0,), (1,)),
    "proj/kernel": expected,
  }


def test_declared_axes_count_stacked_ones():
  params = {"proj": {"kernel": jnp.ones((8, 3, 4, 6))}}
  chosen = [True]
  [axes] = layer_axes(params, chosen, {"proj": 1}, {"proj": (0, 2)})
  assert (axes.stacked, axes.inputs, axes.outputs) == ((1,), (0, 2), (3,))
  assert layer_shapes([axes]) == {f"proj/kernel/{i}": (32, 6) for i in range(3)}


@pytest.mark.parametrize(
  ("stacked", "expected"),
  [
    ("kernel", (0,)),
    ({"kernel": True}, (0,)),
    ({"kernel": 1}, (1,)),
    ({"kernel": -1}, (2,)),
    ({"ker.el": (1, 0)}, (0, 1)),
    (lambda path, leaf: leaf.ndim > 2, (0,)),
    (lambda path, leaf: 1 if leaf.ndim > 2 else False, (1,)),
    (False, ()),
  ],
)
def test_stacks_are_told_by_axis(stacked, expected):
  [axes] = layer_axes({"kernel": jnp.ones((4, 3, 6))}, [True], stacked)
  assert axes.stacked == expected


def test_a_bias_tells_the_axis_that_stacks_layers():
  """As `nn.scan(variable_axes={"params": 1})` leaves them; sides may be equal."""
  for rows, columns in ((16, 32), (32, 32)):
    layer = {"kernel": jnp.ones((rows, 8, columns)), "bias": jnp.ones((columns, 8))}
    message = r"stacked must name the axis.*got 0 at 'L/kernel'.*\{'L/kernel': 1\}"
    with pytest.raises(ValueError, match=message):
      layer_axes({"L": layer}, [False, True], "L/")
  layer = {"kernel": jnp.ones((8, 16, 32)), "bias": jnp.ones((8, 32))}
  [axes] = layer_axes({"L": layer}, [False, True], "L/")
  assert axes.matrix == (16, 32)
  # Stacked attention, and stacked equinox, whose outputs lead.
  layer = {"kernel": jnp.ones((16, 8, 4, 4)), "bias": jnp.ones((4, 8, 4))}
  [axes] = layer_axes({"query": layer}, [False, True], {"query": 1})
  assert (axes.inputs, axes.outputs) == ((0,), (2, 3))
  layer = {"weight": jnp.ones((8, 16, 32)), "bias": jnp.ones((8, 16))}
  [axes] = layer_axes({"L": layer}, [False, True], "L/")
  assert (axes.inputs, axes.outputs) == ((2,), (1,))


# ---- A kernel in another shape, and the same matrix.

STRUCTURES = {
  "n_m": sj.n_m(2, 4),
  "n_m_outputs": sj.n_m(1, 2, axis=-1),
  "strided": sj.n_m(1, 2, groups="strided"),
  "strided_outputs": sj.n_m(1, 2, axis=-1, groups="strided"),
  "block": sj.block((2, 2)),
  "wide_block": sj.block((4, 8)),
  "channel": sj.channel(),
  "channel_inputs": sj.channel(-2, score="max"),
  "fan_in": sj.constant_fan_in(),
  "ablation": sj.constant_fan_in(ablation=0.5),
}
# A shape, its stacked axes, inputs and outputs, and taps are what is left.
LAYOUTS = {
  "query": ((8, 2, 4), (), (0,), (1, 2)),
  "out": ((2, 4, 8), (), (0, 1), (2,)),
  "torch": ((8, 16), (), (1,), (0,)),
  "torch_conv": ((8, 4, 3, 2), (), (1,), (0,)),
  "einsum": ((2, 8, 4), (), (1,), (0, 2)),
  "scanned": ((8, 3, 8), (1,), (0,), (2,)),
  "stacked_last": ((8, 2, 4, 3), (3,), (0,), (1, 2)),
  "scanned_twice": ((2, 8, 3, 8), (0, 2), (1,), (3,)),
}


def _matrix(x, a):
  """By NumPy: (layers, taps ..., inputs, outputs)."""
  x = np.transpose(x, (*a.stacked, *a.taps, *a.inputs, *a.outputs))
  return x.reshape(-1, *a.matrix)


QUICK = {
  ("n_m", "query"),
  ("wide_block", "out"),
  ("channel", "scanned_twice"),
  ("fan_in", "query"),
  ("ablation", "torch_conv"),
}


def _pairs():
  for pair in itertools.product(STRUCTURES, LAYOUTS):
    yield pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("name", "layout"), list(_pairs()))
def test_masks_are_those_of_the_matrix(name, layout):
  """Selected, dropped and grown, with ties among the scores."""
  structure, (shape, *roles) = STRUCTURES[name], LAYOUTS[layout]
  axes = LayerAxes("kernel", shape, *roles)
  try:
    structure.check("kernel", axes)
  except ValueError:
    pytest.skip("a group would cross an axis: refused")
  layers = int(np.prod([shape[i] for i in axes.stacked], dtype=int))
  size = int(np.prod(axes.matrix))
  wanted = jnp.asarray([size * (2 + i) // 5 for i in range(layers)], jnp.int32)
  budgets = structure.fit({str(i): axes.matrix for i in range(layers)}, wanted)
  like = tuple(shape[i] if i in axes.stacked else 1 for i in range(len(shape)))
  own = budgets.reshape(like[: max(axes.stacked, default=-1) + 1])

  @jax.jit
  def run(scores, budgets, growth):
    plain = plain_axes([scores], [budgets])
    a = [axes] if scores.shape == shape else plain
    everything = [jnp.ones_like(scores, bool)]
    first = structure.select([scores], [budgets], everything, axes=a)
    kept = structure.keep([growth], [jnp.maximum(budgets // 2, 1)], first, axes=a)
    return first, structure.fill([scores], [budgets], kept, first, axes=a)

  rng = np.random.default_rng(0)
  for _ in range(3):
    scores, growth = (
      jnp.asarray(rng.integers(0, 9, shape), jnp.float32) for _ in range(2)
    )
    [first], ([grown], [left]) = run(scores, own, growth)
    flat = [jnp.asarray(_matrix(x, axes)) for x in (scores, growth)]
    [one], ([two], [rest]) = run(flat[0], budgets, flat[1])
    np.testing.assert_array_equal(_matrix(first, axes), one)
    np.testing.assert_array_equal(_matrix(grown, axes), two)
    np.testing.assert_array_equal(np.ravel(left), np.ravel(rest))


@settings(max_examples=20)
@given(
  st.permutations(range(4)), st.integers(1, 2), st.integers(1, 2), st.integers(0, 9)
)
def test_axes_cover_a_leaf_in_matrix_order(order, inputs, outputs, seed):
  shape = tuple(np.random.default_rng(seed).integers(1, 5, 4).tolist())
  a = LayerAxes(
    "k",
    shape,
    tuple(sorted(order[inputs + outputs :][:1])),
    tuple(sorted(order[:inputs])),
    tuple(sorted(order[inputs : inputs + outputs])),
  )
  assert sorted(a.order) == [0, 1, 2, 3]
  assert np.prod(a.matrix) == np.prod(a.layer)
  assert a.ordered().order == (0, 1, 2, 3)
  assert a.ordered().matrix == a.matrix
