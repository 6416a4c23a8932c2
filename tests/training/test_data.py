import json
import pathlib
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.training import _errors as errors
from sparsejax.training import data
from sparsejax.training.data import _augment as augment
from sparsejax.training.data import _tfds_source as tfds_source


def _rows(split):
  return {image.tobytes() for image in split.images}


def test_digits_are_those_of_scikit_learn():
  datasets = pytest.importorskip("sklearn.datasets")
  found, known = data.load("digits"), datasets.load_digits()
  images = np.concatenate([split.images for split in found[:3]])
  labels = np.concatenate([split.labels for split in found[:3]])
  rows = np.column_stack([images.reshape(len(images), 64), labels])
  wanted = np.column_stack([known["data"], known["target"]])
  ordered = lambda table: table[np.lexsort(table.T)]
  np.testing.assert_array_equal(ordered(rows), ordered(wanted))


def test_digits_splits_are_disjoint_and_fixed():
  first, second = data.load("digits"), data.load("digits")
  for a, b in zip(first[:3], second[:3], strict=True):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
  assert [len(s.labels) for s in first[:3]] == [1294, 144, 359]
  assert first.num_classes == 10
  assert first.train.images.dtype == np.uint8
  assert first.train.labels.dtype == np.int32
  assert not _rows(first.train) & _rows(first.test)
  assert not _rows(first.train) & _rows(first.validation)


def test_validation_fraction_takes_from_training_only():
  none, half = data.load("digits", "", 0.0), data.load("digits", "", 0.5)
  assert [len(s.labels) for s in none[:3]] == [1438, 0, 359]
  assert [len(s.labels) for s in half[:3]] == [719, 719, 359]
  np.testing.assert_array_equal(none.test.images, half.test.images)
  assert _rows(half.train) | _rows(half.validation) == _rows(none.train)


def test_statistics_are_those_of_the_pixels():
  images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
  mean, std = data.statistics(images)
  assert mean.shape == std.shape == (1, 1, 1, 3)
  np.testing.assert_allclose(mean.ravel(), images.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(std.ravel(), images.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_a_constant_channel_can_be_divided_by():
  _, std = data.statistics(np.full((2, 2, 2, 1), 7, np.uint8))
  assert np.isfinite(1 / std).all()


@pytest.mark.parametrize(
  ("n", "multiple", "padded"), [(7, 5, 10), (10, 5, 10), (0, 3, 0)]
)
def test_pad(n, multiple, padded):
  split = data.Split(np.ones((n, 2, 2, 1), np.uint8), np.ones(n, np.int32))
  result = data.pad(split, multiple)
  assert len(result.images) == len(result.labels) == padded
  assert (result.labels == -1).sum() == padded - n
  assert result.labels.dtype == np.int32


@pytest.mark.parametrize(
  ("args", "match"),
  [
    (("digit",), r"dataset must be one of digits, mnist.*; got 'digit'; did you"),
    (("digits", "", 1.0), r"validation_fraction must be in \[0, 1\); got 1.0"),
    (("digits", "", 0.9999), r"validation_fraction must leave images to train on"),
    (("digits", "", -0.1), r"validation_fraction must be in"),
  ],
)
def test_bad_arguments(args, match):
  with pytest.raises(errors.ConfigError, match=match):
    data.load(*args)


@pytest.fixture
def offline(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_missing_data_set_says_how_to_get_it(tmp_path, offline, monkeypatch):
  with pytest.raises(errors.DatasetNotFoundError) as e:
    data.load("mnist", str(tmp_path))
  for part in ("'mnist'", str(tmp_path), "prepare_data.py mnist", "TFDS_DATA_DIR"):
    assert part in str(e.value)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
  with pytest.raises(errors.DatasetNotFoundError, match=r"elsewhere.*TFDS_DATA_DIR"):
    data.load("mnist")


def test_another_file_format_is_refused(tmp_path, offline):
  folder = tmp_path / "mnist" / "3.0.1"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
  with pytest.raises(errors.DatasetNotFoundError, match=r"'array_record'.*'tfrecord'"):
    data.load("mnist", str(tmp_path))


def test_the_newest_version_is_taken(tmp_path):
  for version in ("3.0.9", "3.0.10"):
    folder = tmp_path / "mnist" / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
  assert tfds_source.find("mnist", str(tmp_path)).name == "3.0.10"


def test_damaged_data_set_is_named(tmp_path, tfds_dir, monkeypatch, offline):
  monkeypatch.setenv("SPARSEJAX_CACHE_DIR", str(tmp_path / "cache"))
  source = tfds_source.find("mnist", tfds_dir)
  folder = tmp_path / "mnist" / source.name
  folder.mkdir(parents=True)
  for file in source.iterdir():
    content = file.read_bytes()
    (folder / file.name).write_bytes(content[:1000] if "test" in file.name else content)
  with pytest.raises(errors.DatasetNotFoundError, match=r"test split.*cannot be read"):
    tfds_source.read("mnist", "test", str(tmp_path))


def test_mnist_is_read_without_tensorflow_and_cached(
  tmp_path, tfds_dir, monkeypatch, offline
):
  monkeypatch.setenv("SPARSEJAX_CACHE_DIR", str(tmp_path))
  images, labels = tfds_source.read("mnist", "test", tfds_dir)
  assert images.shape == (10_000, 28, 28, 1)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(
    np.bincount(labels), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  )
  assert "tensorflow" not in sys.modules
  (cached,) = pathlib.Path(tmp_path).iterdir()
  monkeypatch.setattr(tfds_source, "_decode", None)
  again = tfds_source.read("mnist", "test", tfds_dir)
  np.testing.assert_array_equal(again[0], images)
  np.testing.assert_array_equal(again[1], labels)
  assert list(tmp_path.iterdir()) == [cached]


@pytest.fixture
def decoded(monkeypatch, tmp_path):
  """A data set whose decoding is counted."""
  folder = tmp_path / "data" / "mnist" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
  calls = []

  def decode(directory, split):
    calls.append(split)
    return np.full((3, 2, 2, 1), 7, np.uint8), np.arange(3, dtype=np.int32)

  monkeypatch.setattr(tfds_source, "_decode", decode)
  monkeypatch.setenv("SPARSEJAX_CACHE_DIR", str(tmp_path / "cache"))
  read = lambda: tfds_source.read("mnist", "train", str(tmp_path / "data"))
  return read, calls, folder


def test_damaged_cache_is_decoded_again(decoded, tmp_path):
  read, calls, _ = decoded
  read()
  (cached,) = (tmp_path / "cache").iterdir()
  for damage in (b"", cached.read_bytes()[:100], b"no zip file"):
    cached.write_bytes(damage)
    images, _ = read()
    assert images.shape == (3, 2, 2, 1)
  assert calls == ["train"] * 4
  read()
  assert calls == ["train"] * 4


def test_changed_data_set_is_decoded_again(decoded):
  read, calls, folder = decoded
  read()
  (folder / "dataset_info.json").write_text('{"fileFormat": "array_record", "x": 1}')
  read()
  assert len(calls) == 2


def test_pickled_cache_is_not_loaded(decoded, tmp_path):
  read, calls, _ = decoded
  read()
  (cached,) = (tmp_path / "cache").iterdir()
  np.savez(cached, images=np.array([{}], object), labels=np.zeros(1, np.int32))
  read()
  assert len(calls) == 2


def test_cache_that_cannot_be_written_only_warns(decoded, tmp_path, monkeypatch):
  read, calls, _ = decoded
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("SPARSEJAX_CACHE_DIR", str(tmp_path / "file"))
  for _ in range(2):
    with pytest.warns(UserWarning, match="SPARSEJAX_CACHE_DIR"):
      read()
  assert len(calls) == 2


def test_crop_moves_each_image_by_its_own_offset():
  images = jnp.arange(64 * 36, dtype=jnp.uint8).reshape(64, 6, 6, 1)
  out = augment.crop(jax.random.key(0), images, 2)
  assert out.shape == images.shape
  assert out.dtype == images.dtype
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
  offsets = set()
  for i in range(64):
    windows = {
      (r, c): padded[i, r : r + 6, c : c + 6] for r in range(5) for c in range(5)
    }
    found = [k for k, w in windows.items() if np.array_equal(w, out[i])]
    assert found
    offsets.add(found[0])
  assert len(offsets) > 12


def test_flip_mirrors_about_half():
  images = jnp.arange(400 * 4, dtype=jnp.int32).reshape(400, 2, 2, 1)
  out = np.asarray(augment.flip(jax.random.key(1), images))
  same = (out == np.asarray(images)).all((1, 2, 3))
  mirrored = (out == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))
  assert (same | mirrored).all()
  assert 140 < mirrored.sum() < 260


@pytest.mark.parametrize("name", sorted(augment.AUGMENTATIONS))
def test_augmentation_depends_on_its_key_alone(name):
  images = jax.random.randint(jax.random.key(2), (8, 32, 32, 3), 0, 256).astype(
    jnp.uint8
  )
  f = jax.jit(augment.get(name))
  np.testing.assert_array_equal(
    f(jax.random.key(3), images), f(jax.random.key(3), images)
  )
  different = not np.array_equal(
    f(jax.random.key(4), images), f(jax.random.key(3), images)
  )
  assert different == (name != "none")


def test_unknown_augmentation():
  with pytest.raises(errors.ConfigError, match="augmentation must be one of"):
    augment.get("cutout")
