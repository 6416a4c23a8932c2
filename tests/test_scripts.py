"""Every script teaches with --help, and takes its flags in the same way."""

import ast
import json
import pathlib
import re

import pytest

from scripts.reproduce.sparse_momentum import ablation
from scripts.reproduce.supermasks import measurements
from sparsejax import training
from sparsejax.experiments import results
from sparsejax.training._methods import METHODS

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(ROOT.glob("scripts/**/*.py"))
MAIN = 'if __name__ == "__main__":'
SCRIPTS = [path for path in FILES if MAIN in path.read_text()]
BENCHMARKS = ("-m", "scripts.benchmarks")


def _calls(path):
  """Every call of a file as (name, call), such as `flags.DEFINE_bool`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), node


@pytest.fixture
def run(run_script):
  def checked(*command, code=0):
    done = run_script(*command)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done

  return checked


def _launched(path):
  """The user's commands are run by path, those of the project as modules."""
  relative = path.relative_to(ROOT)
  if path.parent.name == "scripts":
    return relative.as_posix()
  return "-m " + ".".join(relative.with_suffix("").parts).removesuffix(".__main__")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_script_says_how_it_is_launched(path):
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert text.splitlines()[0].endswith((".", "?"))
  assert re.search(rf"python {re.escape(_launched(path))}\s", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_flags_are_taken_in_one_way_and_explained(path):
  calls = dict(_calls(path))
  defined = [(name, node) for name, node in _calls(path) if "DEFINE_" in name]
  assert "app.run" not in calls
  assert bool(defined) == ("command_line.run" in calls)
  for name, node in defined:
    words = [ast.unparse(a) for a in node.args[1:]]
    words += [ast.unparse(k.value) for k in node.keywords if k.arg == "help_string"]
    where = f"{path.name}: {name} of {ast.unparse(node.args[0])} has no help"
    assert any(" " in word and len(word) > 8 for word in words), where
  if "argparse.ArgumentParser" in calls:
    given = {
      k.arg: ast.unparse(k.value) for k in calls["argparse.ArgumentParser"].keywords
    }
    assert given["description"] == "__doc__"
    assert "Raw" in given["formatter_class"]


def test_help_is_a_success_and_a_mistake_is_a_line(run):
  out = run(*BENCHMARKS, "--help").stdout
  assert out.lstrip().startswith("Runs the benchmarks:")
  for flag in ("--cases", "--networks", "--[no]quick"):
    assert flag in out
  error = run(*BENCHMARKS, "--cases=selection", "--nope", code=1).stderr
  assert error.splitlines()[0].startswith("Error: Unknown command line flag 'nope'")
  error = run(*BENCHMARKS, "selection", code=1).stderr
  assert error == "Error: unknown arguments: selection\n"


def test_benchmarks_are_of_every_method(run):
  cases = run(*BENCHMARKS, "--list").stdout.split()
  assert len(cases) == len(set(cases))
  for size in ("1e4", "1e5", "1e6", "1e7", "1e8"):
    assert f"selection/n={size}" in cases
  for tree in ("resnet50", "vit_b"):
    assert {c.rpartition("/")[2] for c in cases if f"methods/{tree}" in c} == {
      name
      for name, method in METHODS.items()
      if name != "dense" and not method.prunes_at_init
    }


def test_benchmarks_keep_the_rows_of_other_cases(run, tmp_path):
  out, plot = tmp_path / "benchmarks.json", tmp_path / "benchmarks.png"
  held = [
    results.row("selection/n=1e4", "seconds", 2.0),
    results.row("off_step/resnet50/rigl", "times_plain_step", 1.25),
  ]
  results.write_results(out, "benchmarks", held)
  record = tmp_path / "full/selection/n=1e4.json"
  record.parent.mkdir(parents=True)
  record.write_text(json.dumps([results.row("selection/n=1e4", "seconds", 1.0)]))
  run(
    *BENCHMARKS,
    "--write_only",
    f"--workdir={tmp_path}",
    f"--out={out}",
    f"--plot={plot}",
  )
  rows = json.loads(out.read_text())["rows"]
  assert [(r["case"], r["mean"]) for r in rows] == [
    ("selection/n=1e4", 1.0),
    ("off_step/resnet50/rigl", 1.25),
  ]
  assert plot.stat().st_size > 10_000
  # A file of an older version has one run for all of its rows.
  made = results.read_rows(out)[0]["runs"][0] | {"commit": "0449b5a"}
  old = {"name": "benchmarks", **made, "rows": [{**held[1], "mean": 2.0}]}
  (tmp_path / "old.json").write_text(json.dumps(old))
  run(
    *BENCHMARKS,
    "--write_only",
    f"--workdir={tmp_path}",
    f"--out={out}",
    f"--plot={plot}",
    f"--before={tmp_path / 'old.json'}",
  )
  [row] = [r for r in results.read_rows(out) if r["metric"].endswith("_before")]
  assert (row["mean"], row["runs"][0]["commit"]) == (2.0, "0449b5a")


def test_supermasks_are_trained_for_the_steps_of_their_config():
  config = {"dataset": "digits", "model": "mlp", "batch_size": 100, "num_epochs": 2}
  full = training.complete_config(config | {"num_steps": 3})
  steps = lambda full: measurements._program(json.dumps(training.config_to_json(full)))
  assert steps(full).steps == 3
  assert steps(training.complete_config(config)).steps == 24  # of 1,294 images


def test_every_case_of_the_ablation_is_a_config():
  found = ablation.cases()
  assert len(found) == 36
  for fields in found.values():
    config = training.complete_config(ablation.make_config(fields, num_epochs=20))
    assert (config.num_epochs, config.lr_decay_every) == (20, 5000)
    assert all(getattr(config, name) == value for name, value in fields.items())


def test_rows_of_the_authors_program(run, tmp_path):
  command = ("-m", "scripts.reproduce.sparse_momentum.authors", f"--workdir={tmp_path}")
  assert "--program must be a clone" in run(*command, code=1).stderr
  case = "lenet300/density=0.05/authors"
  summary = {"epochs": 100, "commit": "c" * 40, "torch": "2.14.1"}
  summary["run"] = training.environment()
  for seed, error in enumerate((1.5, 1.7)):
    folder = tmp_path / case / f"seed={seed}"
    folder.mkdir(parents=True)
    done = summary | {"test_error_percent": error}
    (folder / "summary.json").write_text(json.dumps(done))
  run(*command, "--write_only", f"--out={tmp_path}/out.json")
  [row] = json.loads((tmp_path / "out.json").read_text())["rows"]
  assert (row["case"], row["mean"], row["n"], row["paper"]) == (case, 1.6, 2, 1.53)
  assert "c" * 40 in row["note"]
