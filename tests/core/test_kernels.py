"""The default choice of leaves, on the parameters of real models."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sparsejax as sj
from sparsejax.core import _kernels as kernels
from sparsejax.core._tree import matches, named_leaves, why_dense

HERE = pathlib.Path(__file__).parent


def real_models():
  """{model: {path: (expected reason or None, abstract value)}} of `kernels.txt`."""
  models, name = {}, ""
  for line in (HERE / "kernels.txt").read_text().splitlines():
    if line.startswith("# "):
      name = line[2:]
    elif line and not line.startswith("##"):
      expected, path, shape, *dtype = line.split()
      sizes = () if shape == "scalar" else tuple(map(int, shape.split("x")))
      leaf = jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype[0] if dtype else "float32"))
      reason = None if expected == "kernel" else expected.replace("-", " ")
      models.setdefault(name, {})[path] = (reason, leaf)
  return models


MODELS = real_models()


def test_there_are_many_models():
  assert len(MODELS) >= 40
  assert sum(map(len, MODELS.values())) > 400


@pytest.mark.parametrize("model", MODELS)
def test_real_models(model):
  expected = {path: reason for path, (reason, _) in MODELS[model].items()}
  # The leaves of one module stand together, as in the model's own tree.
  tree = {}
  for path, (_, leaf) in MODELS[model].items():
    module, _, name = path.rpartition("/")
    tree.setdefault(module, {})[name] = leaf
  paths = [path.lstrip("/") for path, _ in named_leaves(tree)]
  assert dict(zip(paths, why_dense(tree), strict=True)) == expected


class PreNorm(nn.Module):
  """A normalization and what follows it, as many code bases name it."""

  @nn.compact
  def __call__(self, x):
    h = nn.Dense(48)(nn.LayerNorm()(x))
    return x + nn.Dense(32)(nn.relu(h))


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(6, name="head")(PreNorm()(x))


def test_a_word_up_the_path_says_nothing():
  # 32 x 48 + 48 x 32 + 32 x 6 = 3,264 weights, of which 326 are live at a tenth.
  params = jax.jit(Net().init)(jax.random.key(0), jnp.ones((2, 32)))["params"]
  masks = sj.masks(sj.static_sparse(optax.sgd(0.1), 0.1).init(params))
  assert sum(m.size for m in jax.tree.leaves(masks)) == 3264
  assert sum(int(m.sum()) for m in jax.tree.leaves(masks)) == 326
  assert masks["PreNorm_0"]["LayerNorm_0"]["scale"] is None


def test_a_dictionary_keeps_its_key_value():
  params = {name: jnp.ones((8, 8)) for name in ("query", "key", "value", "out")}
  masks = sj.masks(
    sj.static_sparse(optax.sgd(0.1), 0.5, where="(query|key|value)$").init(params)
  )
  live = {name: None if m is None else int(m.sum()) for name, m in masks.items()}
  assert live == {"query": 32, "key": 32, "value": 32, "out": None}
  assert "value       8x8" in sj.summary(params, masks)


def test_containers_do_not_rename_leaves():
  class Attention(nnx.Module):
    def __init__(self):
      self.value = nnx.Param(jnp.ones((4, 4)))
      self.out = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

  @jax.tree_util.register_dataclass
  @dataclasses.dataclass
  class Raw:
    query: jax.Array
    value: jax.Array

  model = Attention()
  boxed = {"value": {"kernel": nn.Partitioned(jnp.ones((4, 4)), ("in", "out"))}}
  for tree, expected in [
    (nnx.state(model, nnx.Param), ["out/bias", "out/kernel", "value"]),
    (nnx.to_pure_dict(nnx.state(model)), ["out/bias", "out/kernel", "value"]),
    (model, ["out/bias", "out/kernel", "value"]),
    (boxed, ["value/kernel"]),
    ({"attn": Raw(jnp.ones((4, 4)), jnp.ones((4, 4)))}, ["attn/query", "attn/value"]),
  ]:
    assert [path for path, _ in named_leaves(tree)] == expected
    assert matches(tree, r"(^|/)(kernel|value)$") == [
      path.rpartition("/")[2] in ("kernel", "value") for path in expected
    ]


def test_a_neighbor_tells_whether_b_is_a_bias():
  stacked = {"w": jnp.ones((4, 8, 8)), "b": jnp.ones((4, 8))}
  assert why_dense(stacked) == ["bias", None]
  assert why_dense({"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}) == [None, None]


def test_leaves_without_gradients():
  tree = {
    "dense": {"kernel": jnp.ones((4, 4), jnp.int8), "kernel_scale": jnp.ones((1, 4))},
    "dropout": {"key": jax.random.key(0), "rngs": jax.random.split(jax.random.key(1))},
    "fft": {"kernel": jnp.ones((4, 4), jnp.complex64)},
    "head": {"kernel": jnp.ones((4, 4), jnp.bfloat16)},
  }
  paths = [path for path, _ in named_leaves(tree)]
  assert dict(zip(paths, why_dense(tree), strict=True)) == {
    "dense/kernel": "not floating",
    "dense/kernel_scale": "scale",
    "dropout/key": "not floating",
    "dropout/rngs": "not floating",
    "fft/kernel": "not floating",
    "head/kernel": None,
  }


def test_summary_says_why_a_leaf_is_dense():
  params = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "ln": {"scale": jnp.ones(4)},
    "wte": {"weight": jnp.ones((10, 4))},
    "cls": jnp.ones((1, 1, 4)),
    "ids": jnp.ones((2, 2), jnp.int32),
    "head": {"kernel": jnp.ones((4, 2)), "temperature": jnp.ones(())},
  }
  masks = jax.tree.map(lambda _: None, params)
  masks["conv"]["kernel"] = jnp.ones((3, 3, 2, 4), bool)
  table = sj.summary(params, masks)
  said = dict(line.split(maxsplit=1) for line in table.splitlines()[2:-3])
  assert {path: row.partition("dense: ")[2] for path, row in said.items()} == {
    "cls": "leading axis of 1",
    "conv/bias": "bias",
    "conv/kernel": "",
    "head/kernel": "excluded by where",
    "head/temperature": "rank below 2",
    "ids": "not floating",
    "ln/scale": "normalization",
    "wte/weight": "embedding",
  }


def test_the_table_of_the_guide():
  """Each example of docs/leaves.md is decided as its row says."""
  guide = (HERE.parent.parent / "docs/leaves.md").read_text()
  rows = re.findall(r"^\| (?!Why|---)([^|]+)\|[^|]*\|([^|]*)\|$", guide, re.MULTILINE)
  assert len(rows) >= 9
  for reason, examples in rows:
    for path, shape in re.findall(r"`(\S+) \(([\d, ]*)\)`", examples):
      leaf = jax.ShapeDtypeStruct(
        tuple(int(n) for n in re.findall(r"\d+", shape)),
        jnp.int8 if "int8" in path else jnp.float32,
      )
      expected = None if reason.strip() == "a kernel" else reason.strip()
      assert kernels.why_dense(path, leaf) == expected, path
