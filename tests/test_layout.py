"""Modules are private, packages import downwards, scripts are importable modules."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "sparsejax"
SCRIPTS = ROOT / "scripts"
# Each package may import from those in the lines above its own.
LAYERS = (
  ("core",),
  ("scores", "distributions", "initializers", "ops"),
  ("transforms", "second_order", "models", "analysis"),
  ("methods", "theory", "post_training"),
  ("growth", "lottery", "supermasks"),
  ("training",),
  ("reports",),
  ("experiments",),
)
LEVEL = {package: i for i, layer in enumerate(LAYERS) for package in layer}
MODULES = sorted(LIBRARY.rglob("*.py"))
# `sparsejax/__init__.py` collects the names of `sj.`, whatever package they are from.
INSIDE = [path for path in MODULES if path.parent != LIBRARY]


def imports(path):
  """The absolute dotted names that a file imports from this library."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    yield from (name for name in names if name.startswith("sparsejax."))


def test_every_package_has_a_layer():
  packages = {
    path.name for path in LIBRARY.iterdir() if (path / "__init__.py").exists()
  }
  assert packages <= set(LEVEL)


@pytest.mark.parametrize("path", INSIDE, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_point_downwards(path):
  package = path.relative_to(LIBRARY).parts[0]
  for name in imports(path):
    other = name.split(".")[1]
    if other != package:
      assert LEVEL[other] < LEVEL[package], f"{path} imports {name}"


def test_modules_are_private():
  public = [
    p for p in MODULES if p.name != "__init__.py" and not p.name.startswith("_")
  ]
  assert not public


def users():
  """Everything outside of the library that imports it, but for its tests."""
  found = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
  ).stdout.split()
  return [ROOT / f for f in found if not f.startswith(("tests/", "sparsejax/"))]


def test_private_modules_are_imported_within_their_package_only():
  for path in [*MODULES, *users()]:
    inside = path.is_relative_to(LIBRARY)
    package = path.relative_to(LIBRARY).parts[0] if inside else None
    for name in imports(path):
      parts = name.split(".")
      if any(part.startswith("_") and part != "__version__" for part in parts[1:]):
        assert parts[1] == package, f"{path} imports {name}"


def test_packages_offer_what_they_name():
  for init in LIBRARY.rglob("__init__.py"):
    tree = ast.parse(init.read_text())
    named = [n for n in tree.body if isinstance(n, ast.Assign)]
    assert any(getattr(n.targets[0], "id", "") == "__all__" for n in named), init


@pytest.mark.parametrize("place", [LIBRARY, SCRIPTS], ids=lambda p: p.name)
def test_no_folder_is_crowded(place):
  for folder in {path.parent for path in place.rglob("*.py")}:
    assert len(list(folder.glob("*.py"))) <= 25, folder


def test_modules_are_imported_by_name():
  """No script or test edits the search path, or runs a file in place of an import."""
  edits = re.compile("|".join(("sys" + r"\.path", "syspath", "run" + "py")))
  for path in [*SCRIPTS.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
    if path != pathlib.Path(__file__):
      assert not edits.search(path.read_text()), path


def test_scripts_of_users_need_the_library_only():
  """A script that is run by path imports no other script."""
  for path in SCRIPTS.glob("*.py"):
    tree = ast.parse(path.read_text())
    froms = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names = [
      alias.name
      for node in ast.walk(tree)
      if isinstance(node, ast.Import)
      for alias in node.names
    ]
    beside = {p.stem for p in SCRIPTS.iterdir()} | {"scripts"}
    assert not {str(name).split(".")[0] for name in froms + names} & beside, path


def test_nothing_runs_the_tests():
  for path in [*SCRIPTS.rglob("*.py"), *MODULES]:
    assert not re.search(r"tests/|import pytest", path.read_text()), path
