import json

import pytest

from sparsejax.experiments import results


def test_file_holds_rows_and_what_made_them(tmp_path, monkeypatch):
  arguments = ["scripts/toy.py", "--data_dir=/home/me/data", "--out=plots", "/a/b"]
  monkeypatch.setattr("sys.argv", arguments)
  path = tmp_path / "new" / "toy.json"
  rows = [
    results.row("net/a", "test_error_percent", [1.0, 2.0, 3.0], paper=2.5, source="x"),
    results.row("net/b", "seconds", 4),
  ]
  results.write_results(path, "toy", rows)
  whole = json.loads(path.read_text())
  assert list(whole) == ["name", "runs", "rows"]
  [run] = whole["runs"]
  assert list(run) == ["command", "commit", "date", "hardware", "versions"]
  assert run["command"] == "python scripts/toy.py --data_dir=data --out=plots b"
  assert whole["rows"][0]["mean"] == 2.0
  assert whole["rows"][0]["sem"] == pytest.approx(3**-0.5)
  assert whole["rows"][1] == {
    "case": "net/b",
    "metric": "seconds",
    "mean": 4.0,
    "sem": None,
    "n": 1,
    "values": [4.0],
    "paper": None,
    "source": "",
    "note": "",
    "runs": [0],
  }
  assert "jax" in run["versions"]
  assert [p.name for p in path.parent.iterdir()] == ["toy.json"]


def test_bad_rows_are_named(tmp_path):
  with pytest.raises(ValueError, match="finite"):
    results.row("a", "b", [float("nan")])
  one = results.row("a", "b", 1.0)
  with pytest.raises(ValueError, match="twice"):
    results.write_results(tmp_path / "x.json", "x", [one, one])
  with pytest.raises(ValueError, match="keys"):
    results.write_results(tmp_path / "x.json", "x", [{"case": "a"}])
  with pytest.raises(ValueError, match=r"fields must be of .*, got \['comits'\]"):
    results.row("a", "b", 1.0, comits=["abc"])


MADE = {
  "command": "python train.py",
  "commit": "abc",
  "date": "2026-11-28",
  "hardware": "an abacus",
  "versions": {"jax": "0.10.2"},
}


def test_rows_keep_their_fields_and_where_they_were_made(tmp_path):
  path = tmp_path / "x.json"
  one = results.row("a", "b", 1.0, note="at commit of the paper", steps=3)
  other = results.row("c", "b", 2.0, runs=[MADE])
  results.write_results(path, "x", [one, other])
  first, second = results.merge_with_existing([], path)
  assert first == one
  assert second == other
  written = json.loads(path.read_text())
  assert written["runs"] == [*one["runs"], MADE]
  assert [row["runs"] for row in written["rows"]] == [[0], [1]]
  # A new row replaces an old one; the other keeps its environment.
  new = results.row("a", "b", 3.0, runs=[MADE | {"commit": "def"}])
  results.write_results(path, "x", results.merge_with_existing([new], path))
  assert results.read_rows(path) == [new, other]
  with pytest.raises(ValueError, match="runs must have the keys"):
    results.write_results(path, "x", [{**one, "runs": [{"commit": "abc"}]}])
  path.write_text('{"commit": "abc", "rows": []}')
  with pytest.raises(ValueError, match="with the key runs"):
    results.read_rows(path)


def test_environments_of_training_are_those_of_the_runs(tmp_path):
  """The process that writes a table need not be the one that trained."""
  for seed, part in enumerate([MADE, MADE, MADE | {"commit": "def"}]):
    folder = tmp_path / f"seed={seed}"
    folder.mkdir()
    whole = {"parts": [{"step": 0, **part}]}
    (folder / "environment.json").write_text(json.dumps(whole))
  found = results.trained_in(tmp_path / f"seed={seed}" for seed in range(3))
  assert found == [MADE, MADE | {"commit": "def"}]
  with pytest.raises(ValueError, match=r"must have an environment.json, got .*seed=3"):
    results.trained_in([tmp_path / "seed=3"])
