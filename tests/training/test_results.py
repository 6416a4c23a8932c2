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
  assert list(whole) == [
    "name",
    "command",
    "commit",
    "date",
    "hardware",
    "versions",
    "rows",
  ]
  assert whole["command"] == "python scripts/toy.py --data_dir=data --out=plots b"
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
  }
  assert "jax" in whole["versions"]
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


def test_rows_keep_their_fields_and_where_they_were_made(tmp_path):
  path = tmp_path / "x.json"
  made = {"commit": "abc", "hardware": "an abacus"}
  one = results.row("a", "b", 1.0, note="at commit of the paper", steps=3)
  other = results.row("c", "b", 2.0, provenance=made)
  results.write_results(path, "x", [one, other])
  first, second = results.merge_with_existing([], path)
  assert first["steps"] == 3
  assert first["note"] == "at commit of the paper"
  written = json.loads(path.read_text())
  assert first["provenance"]["hardware"] == written["hardware"]
  assert second["provenance"] == made
  results.write_results(path, "x", [first, second])
