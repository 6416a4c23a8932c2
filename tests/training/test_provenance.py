import importlib.machinery
import pathlib
import shutil
import subprocess
import sys

import pytest

from sparsejax.training import _provenance as provenance

MODULE = pathlib.Path(provenance.__file__)


def git(folder, *arguments):
  command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
  subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A committed checkout with a package, a config, results and docs."""
  package = tmp_path / "package/training"
  package.mkdir(parents=True)
  shutil.copy(MODULE, package)
  for name in ("configs/a.py", "results/a.json", "docs/a.md", "README.md", "run.sh"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1\n")
  (tmp_path / ".gitignore").write_text("runs/\n")
  for arguments in (["init"], ["add", "."], ["commit", "-m", "all"]):
    git(tmp_path, *arguments)
  monkeypatch.setattr(provenance, "__file__", str(package / MODULE.name))
  return tmp_path


def test_commit_of_a_clean_tree_has_no_mark(checkout):
  assert provenance.commit(12).isalnum()


# What a run may read, in whichever folder, and what did not exist at the commit.
@pytest.mark.parametrize("name", ["configs/a.py", "run.sh", "configs/new.py"])
def test_commit_marks_changes_in_the_whole_tree(checkout, name):
  (checkout / name).write_text("2\n")
  assert provenance.commit().endswith("+")


@pytest.mark.parametrize("name", ["results/a.json", "docs/a.md", "README.md"])
def test_commit_ignores_what_no_run_reads(checkout, name):
  (checkout / name).write_text("2\n")
  (checkout / "runs").mkdir()
  (checkout / "runs/log.txt").write_text("ignored\n")
  assert not provenance.commit().endswith("+")


def test_commit_is_none_outside_of_a_checkout(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
  assert provenance.commit() is None


def test_a_command_run_as_a_module_is_named_by_its_import_path(monkeypatch):
  path = "/a/scripts/reproduce/nest/__main__.py"
  name = "scripts.reproduce.nest.__main__"
  spec = importlib.machinery.ModuleSpec(name, None, origin=path)
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
  monkeypatch.setattr("sys.argv", [path, "--workdir=/b/nest"])
  command = provenance.environment()["command"]
  assert command == "python -m scripts.reproduce.nest --workdir=nest"
