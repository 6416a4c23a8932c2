import errno
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _errors as errors

STAMP = {"density": 0.1, "seed": 0}


def _state(seed=0):
  key = jax.random.key(seed)
  return {
    "key": key,
    "keys": jax.random.split(key, 2),
    "params": {
      "kernel": jax.random.normal(key, (30, 20)),
      "bias": jnp.ones(3, jnp.bfloat16),
    },
    "masks": {"kernel": jax.random.bernoulli(key, shape=(30, 20)), "bias": None},
    "empty": (),
    "step": jnp.int32(seed),
  }


def _equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, STAMP)
  for step in (10, 20, 30):
    checkpoints.save(step, _state(step), {"seconds": step / 2})
  checkpoints.close()
  return tmp_path


def _restore(path, stamp=STAMP, target=None):
  checkpoints = checkpoint.Checkpoints(path, stamp)
  try:
    target = target or _state()
    return checkpoints.restore(jax.eval_shape(lambda: target)), checkpoints.steps()
  finally:
    checkpoints.close()


def test_nothing_to_restore(tmp_path):
  assert _restore(tmp_path) == (None, [])


def test_round_trip_keeps_every_bit_and_type(saved):
  restored, steps = _restore(saved)
  _equal(restored.state, _state(30))
  assert restored.extra == {"seconds": 15.0}
  assert restored.lost == []
  assert steps == [20, 30]
  bias = restored.state["params"]["bias"]
  assert bias.dtype == ml_dtypes.bfloat16


def test_a_checkpoint_that_does_not_say_when_gradients_are_dense(saved):
  """As those from before `mark_dead`: the first step takes them to be."""
  target = _state()
  target["opt"] = {"dense_gradients": {"due": jnp.zeros((2,), bool)}}
  restored, _ = _restore(saved, target=target)
  due = restored.state.pop("opt")["dense_gradients"]["due"]
  np.testing.assert_array_equal(due, [True, True])
  _equal(restored.state, _state(30))


def _files(folder):
  return [p for p in sorted(folder.rglob("*")) if p.is_file()]


def _damage_meta(folder):
  (folder / "meta" / "metadata").write_text('{"format"')


def _damage_arrays(folder):
  for file in _files(folder / "state" / "ocdbt.process_0" / "d"):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))


def _truncate_everything(folder):
  for file in _files(folder):
    file.write_bytes(file.read_bytes()[:20])


def _remove_arrays(folder):
  shutil.rmtree(folder / "state")


def _damage_digests(folder):
  (folder / "digests.json").write_text("{")


DAMAGES = [
  _damage_digests,
  _damage_meta,
  _damage_arrays,
  _truncate_everything,
  _remove_arrays,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_falls_back(saved, damage):
  damage(saved / "checkpoints" / "30")
  restored, steps = _restore(saved)
  _equal(restored.state, _state(20))
  assert len(restored.lost) == 1
  assert "step 30 is damaged" in restored.lost[0]
  assert steps == [20]
  assert (saved / "damaged" / "30").is_dir()
  checkpoints = checkpoint.Checkpoints(saved, STAMP)
  checkpoints.save(30, _state(31), {"seconds": 1.0})
  checkpoints.close()
  _equal(_restore(saved)[0].state, _state(31))


def test_a_flipped_byte_in_any_file_is_noticed(saved):
  folder = saved / "checkpoints" / "30"
  backup = saved / "backup"
  shutil.copytree(folder, backup)
  for file in _files(backup):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(backup, folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / file.relative_to(backup)).write_bytes(bytes(content))
    restored, _ = _restore(saved)
    _equal(restored.state, _state(20))
    assert len(restored.lost) == 1


def test_all_damaged(saved):
  for step in ("20", "30"):
    _truncate_everything(saved / "checkpoints" / step)
  with pytest.raises(errors.CheckpointError, match=r"no checkpoint in .* can be read"):
    _restore(saved)


def test_a_checkpoint_whose_writer_was_killed_before_the_digests_is_not_read(saved):
  (saved / "checkpoints" / "30" / "digests.json").unlink()
  restored, steps = _restore(saved)
  _equal(restored.state, _state(20))
  assert restored.lost == ["the checkpoint of step 30 was not finished"]
  assert steps == [20]


def test_the_first_one_not_finished_costs_its_steps_only(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, STAMP)
  checkpoints.save(10, _state(10), {})
  checkpoints.close()
  (tmp_path / "checkpoints" / "10" / "digests.json").unlink()
  restored, steps = _restore(tmp_path)
  assert restored.state is None
  assert restored.lost == ["the checkpoint of step 10 was not finished"]
  assert steps == []
  assert _restore(tmp_path) == (None, [])


def test_of_two_that_are_not_finished_none_is_read(saved):
  for step in ("20", "30"):
    (saved / "checkpoints" / step / "digests.json").unlink()
  with pytest.raises(errors.CheckpointError, match=r"no checkpoint in .* can be read"):
    _restore(saved)


def test_a_foreign_checkpoint_beside_good_ones_is_passed_over(saved):
  with ocp.CheckpointManager(saved / "checkpoints") as manager:
    manager.save(50, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
  restored, steps = _restore(saved)
  _equal(restored.state, _state(30))
  assert restored.lost == ["the checkpoint of step 50 was not written by this program"]
  assert steps == [20, 30]


def test_a_step_that_is_there_is_not_stamped_again(saved):
  """Else damage that came after it was written would be taken for what was meant."""
  _damage_arrays(saved / "checkpoints" / "30")
  checkpoints = checkpoint.Checkpoints(saved, STAMP)
  checkpoints.save(30, _state(30), {})
  checkpoints.close()
  assert "step 30 is damaged" in _restore(saved)[0].lost[0]


@pytest.mark.parametrize("where", ["orbax", "digests"])
def test_a_full_disk_is_one_clear_error_and_costs_no_checkpoint(
  saved, monkeypatch, where, caplog
):
  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  checkpoints = checkpoint.Checkpoints(saved, STAMP)
  target = (ocp.CheckpointManager, "save") if where == "orbax" else (os, "replace")
  with monkeypatch.context() as m:
    m.setattr(*target, full)
    with pytest.raises(errors.CheckpointError) as e:
      checkpoints.save(40, _state(40), {})
  checkpoints.close()
  assert "step 40 could not be written to" in str(e.value)
  assert "No space left on device. Once that is mended" in str(e.value)
  assert "resumes from step 30, which is kept" in str(e.value)
  assert caplog.text == ""


@pytest.mark.parametrize("process", [0, 1])
def test_only_the_first_process_cleans_up(saved, monkeypatch, process):
  half = saved / "checkpoints" / "40.half"

  def full(*args, **kwargs):
    half.mkdir()
    raise OSError(errno.ENOSPC, "No space left on device")

  checkpoints = checkpoint.Checkpoints(saved, STAMP)
  with monkeypatch.context() as m:
    m.setattr(ocp.CheckpointManager, "save", full)
    m.setattr(jax, "process_index", lambda: process)
    with pytest.raises(errors.CheckpointError, match="step 40 could not be written"):
      checkpoints.save(40, _state(40), {})
  checkpoints.close()
  assert half.exists() == (process > 0)
  restored, _ = _restore(saved)
  _equal(restored.state, _state(30))
  assert restored.lost == []


def test_another_runs_checkpoint_is_refused_and_left_alone(saved):
  with pytest.raises(
    errors.CheckpointError, match=r"another run's: density: 0.1 -> 0.2"
  ):
    _restore(saved, {**STAMP, "density": 0.2})
  assert _restore(saved)[1] == [20, 30]


def test_other_arrays_are_named(saved):
  target = _state()
  target["params"]["kernel"] = jnp.zeros((5, 20))
  with pytest.raises(
    errors.CheckpointError, match=r"params/kernel: .*\[30, 20\].*\[5, 20"
  ):
    _restore(saved, target=target)


def test_foreign_checkpoint_is_refused_and_left_alone(tmp_path):
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
  with pytest.raises(errors.CheckpointError, match="was not written by this program"):
    _restore(tmp_path)
  assert (tmp_path / "checkpoints" / "5").is_dir()


def test_a_newer_format_is_refused(saved, monkeypatch):
  monkeypatch.setattr(checkpoint, "FORMAT", 2)
  with pytest.raises(errors.CheckpointError, match="must be of format 2; got 1"):
    _restore(saved)


def test_restore_is_silent(saved):
  _damage_arrays(saved / "checkpoints" / "30")
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    _restore(saved)
  assert caught == []
