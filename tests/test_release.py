"""What is released: the archives hold what they should, and the texts agree."""

import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import sparsejax as sj

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
  pytest.importorskip("hatchling", reason="needs the dev extra")
  out = tmp_path_factory.mktemp("dist")
  command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
  return wheel, sdist


def test_the_wheel_holds_the_package_and_nothing_else(archives):
  with zipfile.ZipFile(archives[0]) as wheel:
    names = set(wheel.namelist())
    (meta,) = (n for n in names if n.endswith("/METADATA"))
    text = wheel.read(meta).decode()
  own = {n for n in names if not n.split("/")[0].endswith(".dist-info")}
  there = {
    str(p.relative_to(ROOT))
    for p in (ROOT / "sparsejax").rglob("*")
    if p.is_file() and p.suffix in (".py", ".html", ".typed")
  }
  assert own == there
  assert "sparsejax/py.typed" in own
  assert f"Version: {sj.__version__}\n" in text
  needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.MULTILINE)
  assert sorted(needed) == ["jax", "numpy", "optax"]
  assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
  urls = re.findall(r"^Project-URL: (\w+), https://", text, re.MULTILINE)
  assert {"Source", "Issues", "Changelog"} <= set(urls)


def test_the_sdist_can_be_worked_with(archives):
  with tarfile.open(archives[1]) as sdist:
    names = {n.partition("/")[2] for n in sdist.getnames()}
  for name in (
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
  ):
    assert name in names
  for name in ("conftest.py", "mkdocs.yml", "docs/index.md", "scripts/train.py"):
    assert name in names
  for name in ("configs/digits.py", "tests/test_release.py", "results/benchmarks.json"):
    assert name in names
  hidden = [n for n in names if n.startswith((".", "runs/")) and n != ".gitignore"]
  assert not hidden
  assert not [n for n in names if "__pycache__" in n]


def test_the_citation_is_of_this_version():
  text = (ROOT / "CITATION.cff").read_text()
  assert f"\nversion: {sj.__version__}\n" in text
  assert "\nlicense: Apache-2.0\n" in text


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
  for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text()):
    assert (ROOT / target).exists(), f"{name} links to {target}"


def test_paths_named_in_the_guide_for_contributors_are_there():
  text = (ROOT / "CONTRIBUTING.md").read_text()
  paths = re.findall(r"`((?:sparsejax|tests|scripts|docs|\.ci)/[\w./]+)`", text)
  assert len(paths) >= 8
  for path in paths:
    assert (ROOT / path).exists(), path


def test_the_readme_installs_before_it_trains():
  text = (ROOT / "README.md").read_text()
  commands = ("git clone https://", "scripts/quickstart.sh", "scripts/train.py")
  places = [text.index(command) for command in commands]
  assert places == sorted(places)
  assert "jax[cuda" in text
  assert "jax[tpu]" in text
