"""Each case of scripts/reliability in small."""

import pathlib

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj
from scripts.reliability import damage, kill, layouts, long_runs


def test_a_damaged_or_foreign_checkpoint_costs_its_steps_only(tmp_path):
  trial = damage.Trials(tmp_path)
  found = [trial(i) for i in range(8)]
  assert [r["ok"] for r in found] == [True] * 8, found
  assert len({r["kind"] for r in found}) == 8


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only_costs_nothing(tmp_path):
  trial = damage.Trials(tmp_path)
  found = [trial(i) for i in (10, 11)]
  if {r["kind"] for r in found} != {"full_disk", "read_only"}:
    pytest.skip("only root may mount a tiny disk")
  assert [r["ok"] for r in found] == [True, True]


# One that keeps its own average, and scores that are not finite.
@pytest.mark.parametrize("number", [3, 6])
def test_infinities_never_reach_the_masks_and_are_counted(number, tmp_path):
  record = long_runs.non_finite(tmp_path)(number)
  assert record["ok"], record
  assert record["steps_skipped"] + record["mask_updates_skipped"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", range(7))
def test_infinities_in_every_method(number, tmp_path):
  assert long_runs.non_finite(tmp_path)(7 + number)["ok"]


def test_a_long_run_compiles_once_and_counts_are_exact_at_every_step():
  with jax.numpy_dtype_promotion("standard"):  # Adam promotes
    record = long_runs.soak(300)(pathlib.Path())(0)
  assert (record["steps_exact"], record["compilations"]) == (300, 1)


@pytest.mark.parametrize(
  ("optimizer", "dtype"),
  [(optax.sgd(0.1, momentum=0.9), "float32"), (optax.lion(0.01), "bfloat16")],
)
def test_zeros_stay_exact(optimizer, dtype):
  tx = sj.rigl(_loosely(optimizer), 0.3, update_every=10, drop_fraction=0.2)
  assert long_runs.drifted(tx, jnp.dtype(dtype), 200) == (True, 200)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(38))
def test_zeros_stay_exact_with_every_optimizer(number, tmp_path):
  with jax.numpy_dtype_promotion("standard"):  # optax promotes
    record = long_runs.drift(10_000)(tmp_path)(number)
  assert record["ok"], record


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(tmp_path):
  trial = kill.Trials(tmp_path, epochs=3)
  assert trial(0)["ok"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one_device(tmp_path):
  number = layouts.RUNS.index(("gradual_magnitude", "processes=2/fsdp"))
  record = layouts.Trials(tmp_path, epochs=3)(number)
  assert record["ok"], record
  assert record["repeated_bit_identical"] is True


def _loosely(inner):
  """Optax promotes dtypes; everything of ours stays strict."""

  def update(*args, **kwargs):
    with jax.numpy_dtype_promotion("standard"):
      return inner.update(*args, **kwargs)

  return optax.GradientTransformation(inner.init, update)
