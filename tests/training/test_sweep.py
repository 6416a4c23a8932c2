"""Sweeps over the fields of a config."""

import json

import jax
import pytest
from jax import monitoring

from sparsejax.experiments import comparison, results
from sparsejax.training import ConfigError, default_config


def make_config():
  config = default_config()
  config.model_kwargs = {"features": (16,)}
  config.update(batch_size=64, num_epochs=2, density=0.5, method="static_sparse")
  return config


def test_a_sweep_trains_ranks_and_draws(tmp_path, compilations):
  fields = comparison.parse_sweep(["config.learning_rate=1e-5,0.1"])
  settings = comparison.sweep_settings(fields)
  assert settings == [{"learning_rate": 1e-5}, {"learning_rate": 0.1}]
  lines = []
  run = lambda *seeds: comparison.run_sweep(
    make_config, tmp_path, settings, [3, *seeds], say=lines.append
  )
  assert run() == []
  assert len(lines) == 2
  assert run() == []  # finished runs are not repeated
  assert len(lines) == 2
  found = comparison.collect_sweep(tmp_path)
  # A rate near zero learns nothing, so it is last.
  assert [s.values["learning_rate"] for s in found] == [0.1, 1e-5]
  assert found[0].validation[0] > found[1].validation[0] + 20
  assert found[0].seeds == (3,)
  assert comparison.sweep_table(found).splitlines()[1].startswith("0.1")
  out, plot = tmp_path / "sweep.json", tmp_path / "sweep.png"
  comparison.write_sweep(found, out, plot)
  first = json.loads(out.read_text())["rows"][0]
  assert (first["case"], first["metric"]) == (
    "learning_rate=0.1",
    "validation_accuracy_percent",
  )
  assert first["mean"] == pytest.approx(found[0].validation[0])
  assert plot.stat().st_size > 1000
  assert results.read_rows(out)
  # The second seed reads all programs that the first has compiled.
  read = []
  compilations.clear()
  listener = lambda event, **_: read.append(event) if "cache_hit" in event else None
  monitoring.register_event_listener(listener)
  try:
    run(4)
  finally:
    monitoring.unregister_event_listener(listener)
  assert len(lines) == 4
  assert len(read) == len(compilations) >= 8
  assert jax.config.jax_compilation_cache_dir is None


def test_random_settings_are_drawn_from_lists_and_ranges():
  fields = comparison.parse_sweep(["learning_rate=0.001..0.1", "optimizer=sgd,adam"])
  settings = comparison.sweep_settings(fields, 40)
  assert settings[:5] == comparison.sweep_settings(fields, 5)
  rates = [s["learning_rate"] for s in settings]
  assert all(0.001 <= rate <= 0.1 for rate in rates)
  # Log-uniform: about half of them are below the geometric mean.
  assert 10 <= sum(rate < 0.01 for rate in rates) <= 30
  assert {s["optimizer"] for s in settings} == {"sgd", "adam"}


@pytest.mark.parametrize(
  "texts",
  [
    ["learning_rate"],
    ["=1"],
    ["a=1", "config.a=2"],
    ["a=0..1"],
    ["a=2..1"],
    ["a=x..1"],
  ],
)
def test_malformed_sweeps_are_refused(texts):
  with pytest.raises(ConfigError, match="sweep must"):
    comparison.parse_sweep(texts)


def test_unknown_fields_and_wrong_types_are_refused_before_training(tmp_path):
  for values in ({"learning_rat": 0.1}, {"learning_rate": "fast"}, {"density": 2.0}):
    with pytest.raises(ConfigError, match=next(iter(values))[:8]):
      comparison.run_sweep(make_config, tmp_path, [{"density": 0.1}, values], [0])
  assert list(tmp_path.iterdir()) == []
  for values, message in (
    ({"learnin_rate": 0.1}, "config has no field 'learnin_rate'; did you mean 'le"),
    ({"mesh.dta": 2}, "mesh has no field 'dta'; did you mean 'data'?"),
  ):
    with pytest.raises(ConfigError) as found:
      comparison.run_sweep(make_config, tmp_path, [values], [0])
    assert message in str(found.value)
    assert len(str(found.value)) < 100  # not the whole config
  with pytest.raises(ConfigError, match="random"):
    comparison.sweep_settings(comparison.parse_sweep(["a=1..2"]))
