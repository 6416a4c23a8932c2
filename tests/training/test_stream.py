"""ImageNet's path on mock data: read in parts, computed in bfloat16, on a mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax as sj
from sparsejax import models, training
from sparsejax.training import _functions as functions
from sparsejax.training import _metrics as metrics
from sparsejax.training import data as data_lib
from sparsejax.training.data import _stream as stream
from sparsejax.training.parallel import _mesh as mesh_lib


@pytest.fixture(scope="module")
def small(mock_stream):
  return mock_stream(40)


def _take(split, start, number, layout=None):
  batches = split.batches(start, 8, 5, layout)
  return jax.device_get([next(batches) for _ in range(number)])


def test_batches_follow_from_their_number(small):
  whole = _take(small, 0, 7)
  assert whole[0][0].shape == (8, 32, 32, 3)
  assert whole[0][0].dtype == np.uint8
  for a, b in zip(whole[3:], _take(small, 3, 4), strict=True):
    chex.assert_trees_all_equal(a, b)
  # An epoch of five batches sees every example once, the next in another order.
  labels = np.concatenate([labels for _, labels in whole[:5]])
  assert sorted(labels.tolist()) == sorted([*range(10)] * 4)
  assert np.any(np.concatenate([y for _, y in whole[5:]]) != labels[:16])


def test_processes_read_the_parts_of_one_batch(small, monkeypatch):
  whole = _take(small, 2, 2)
  monkeypatch.setattr(stream, "_place", lambda x, y, n, layout: (x, y))
  parts = []
  for first in (0, 4):
    monkeypatch.setattr(
      mesh_lib, "local_rows", lambda layout, n, first=first: (first, first + 4)
    )
    batches = small.batches(2, 8, 5, object())
    parts.append([next(batches) for _ in range(2)])
  for i, (images, labels) in enumerate(whole):
    mine = [parts[p][i] for p in range(2)]
    got = np.stack([x for x, _ in mine], 1).reshape(images.shape)
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(np.stack([y for _, y in mine], 1).ravel(), labels)


def test_evaluation_sees_every_example_once(small):
  batches = jax.device_get(list(small.in_order(16, None)))
  assert [images.shape[0] for images, _ in batches] == [16] * 3
  labels = np.concatenate([labels for _, labels in batches])
  assert labels[:40].tolist() == [i % 10 for i in range(40)]
  assert set(labels[40:].tolist()) == {-1}


def test_crops(small):
  decode = stream.decoder(24)
  record = small.source[3]
  middle = decode(record, None)
  assert middle.shape == (24, 24, 3)
  np.testing.assert_allclose(middle, 80, atol=2)
  for seed in range(20):
    crop = decode(record, np.random.default_rng(seed))
    assert crop.shape == (24, 24, 3)
    np.testing.assert_allclose(crop, 80, atol=2)


def _resnet(num_classes, stages=4, lowering="auto"):
  """ResNet-50's blocks, one a stage, and narrow."""
  return models.ResNet(
    (1,) * stages, 8, True, "imagenet", num_classes, lowering=lowering
  )


@pytest.mark.parametrize("stages", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_imagenet_recipe_trains_on_a_mesh(
  stages, monkeypatch, tmp_path, imagenet_config, mock_stream
):
  splits = tuple(mock_stream(n, seed=n) for n in (64, 8, 20))
  monkeypatch.setattr(stream, "load", lambda *_: splits)
  model = functools.partial(_resnet, stages=stages)
  monkeypatch.setitem(models.MODELS, "resnet50", model)
  assert data_lib.load("imagenet2012").num_classes == 1000
  config = imagenet_config("rigl").to_dict() | {
    "batch_size": 16,
    "num_epochs": 2,
    "warmup_epochs": 1.0,
    "lr_schedule": "cosine",
    "update_every": 2,
    "learning_rate": 0.00625,
    "log_every": 3,
    "mesh": {"data": 4, "model": 2, "fsdp": True},
  }
  result = training.train_and_evaluate(config, tmp_path, verbose=False)
  assert result.finished
  assert result.step == 8
  assert np.isfinite(result.test_loss).all()
  state = result.state
  for x in jax.tree.leaves((state.params, state.model_state)):
    assert x.dtype == jnp.float32
    assert np.isfinite(x).all()
  kernel = sj.masks(state.opt_state)[f"stage{stages}_block1"]["conv2"]["kernel"]
  assert "data" in kernel.sharding.spec
  assert "model" in kernel.sharding.spec


@pytest.mark.slow
def test_the_imagenet_recipe_at_full_size(
  monkeypatch, tmp_path, imagenet_config, mock_stream
):
  """224 x 224 pixels, 1,000 classes and ResNet-50's own widths; masks move once."""
  splits = tuple(mock_stream(n, 224, seed=n) for n in (4, 2, 2))
  monkeypatch.setattr(stream, "load", lambda *_: splits)
  config = imagenet_config("rigl").to_dict() | {
    "batch_size": 2,
    "num_epochs": 3,
    "warmup_epochs": 1.0,
    "lr_schedule": "cosine",
    "update_every": 2,
    "learning_rate": 0.0008,
    "log_every": 2,
  }
  result = training.train_and_evaluate(config, tmp_path, verbose=False)
  assert result.finished
  assert result.step == 6
  assert np.isfinite(result.test_loss).all()
  params, masks = result.state.params, sj.masks(result.state.opt_state)
  assert sum(x.size for x in jax.tree.leaves(params)) == 25_557_032
  trained = (params, result.state.model_state, result.state.opt_state)
  wide = [x for x in jax.tree.leaves(trained) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in wide} == {jnp.dtype(jnp.float32)}
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, masks)))
  before, update, after = (r for r in metrics.read(tmp_path) if "grown" in r)
  assert update["grown"] == update["dropped"] > 100_000
  assert before["dropped"] == after["dropped"] == 0
  kernels = sum(mask.size for mask in jax.tree.leaves(masks))
  live = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
  assert live == round(0.2 * kernels)
  for path, mask in jax.tree_util.tree_leaves_with_path(masks):
    kernel = functools.reduce(lambda tree, key: tree[key.key], path, params)
    assert not np.any(np.asarray(kernel)[~np.asarray(mask)])


def test_it_computes_in_bfloat16():
  f = functions.from_flax(_resnet(10, lowering="lax"), "bfloat16")
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  params, state = jax.eval_shape(f.init, jax.random.key(0), images)
  apply = functools.partial(f.apply, key=jax.random.key(0))
  text = str(jax.make_jaxpr(apply)(params, state, images))
  products = [
    line
    for line in text.splitlines()
    if "dot_general" in line or "conv_general" in line
  ]
  assert products
  assert all(":bf16[" in line for line in products)
  logits, after = jax.eval_shape(apply, params, state, images)
  assert logits.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after))
