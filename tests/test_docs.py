"""The guide's code runs, the reference leaves nothing out, the site builds."""

import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

import sparsejax as sj
from scripts.site import pages, reference, tables
from sparsejax.training._methods import METHODS

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Excerpts, whose whole stands elsewhere, and the guides that have tests of their own.
# The tutorials have one, too.
_NOT_RUN = ("index.md", "adding_a_method.md", "logging.md")
GUIDES = sorted(
  path
  for path in (ROOT / "docs").glob("**/*.md")
  if _BLOCK.search(path.read_text())
  and path.name not in _NOT_RUN
  and path.parent.name != "tutorials"
)


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)
def test_code_of_the_guides_runs(path):
  code = "\n".join(_BLOCK.findall(path.read_text()))
  # Guides are written for people, who add a bias to a batch without a reshape.
  with jax.numpy_rank_promotion("allow"):
    exec(compile(code, str(path), "exec"), {})


def test_every_public_name_is_documented():
  written = "".join(reference.pages().values())
  documented = re.findall(r"^::: (\S+)$", written, re.MULTILINE)
  assert len(documented) == len(set(documented))
  public = {id(getattr(sj, name)): name for name in sj.__all__}
  for package in reference.packages():
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
      short = public.get(id(getattr(module, name)))
      wanted = f"sparsejax.{short}" if short else f"{package}.{name}"
      same = [d for d in documented if _item(d) is getattr(module, name)]
      assert wanted in documented or same, f"{package}.{name} is in no page"


def test_nothing_documented_is_missing_or_without_a_docstring():
  for name in reference.public():
    item = _item(name.identifier)
    if callable(item) or inspect.ismodule(item):
      first = (inspect.getdoc(item) or "").partition("\n")[0]
      assert first.endswith((".", "?")), f"{name.identifier}: {first!r}"


def test_arguments_are_those_of_the_signature():
  """Every argument is told of, in an Args section that names no other."""
  for name in reference.public():
    item = _item(name.identifier)
    if not inspect.isfunction(item):
      continue
    told = re.search(r"^Args:\n((?:  .*\n|\n)*)", f"{inspect.getdoc(item)}\n", re.M)
    heads = re.findall(r"^  (\S[^:]*):", told[1] if told else "", re.MULTILINE)
    found = {word.strip(" *") for head in heads for word in head.split(",")}
    wanted = set(inspect.signature(item).parameters)
    if told:
      assert found == wanted, name.identifier
    else:
      assert len(wanted) <= 1, f"{name.identifier} has no Args"


def test_every_method_has_a_page_that_says_when_to_use_it():
  methods = reference.methods()
  assert set(METHODS) <= set(methods)
  for name in methods:
    path = ROOT / f"docs/methods/{name}.md"
    assert path.exists(), f"write {path.relative_to(ROOT)}"
    text = path.read_text()
    assert "## When to use it\n" in text
    made = pages.method(name, text)
    assert "```text\n" in made
    assert "## Cost" in made
  written = {path.stem for path in (ROOT / "docs/methods").glob("*.md")}
  assert written == {*methods, "index", "which"}


def test_numbers_come_from_the_results():
  filled = pages.filled
  row = tables.find("benchmarks", "selection/n=1e7", "times_numpy_partition")
  text = filled("{{ benchmarks selection/n=1e7 times_numpy_partition }} times")
  assert text == f"{row['mean']:.2f} times"
  with pytest.raises(LookupError, match=r"results/benchmarks.json has no row a b"):
    filled("{{ benchmarks a b }}")


def test_rules_are_shown_as_they_stand():
  pytest.importorskip("griffe", reason="needs the docs extra")
  docstrings = importlib.import_module("scripts.site.docstrings")
  text = docstrings.rewritten(
    "Adds.\n\ny = x * 2\n\nArgs:\n  x: it.\n\nExample:\n  >>>"
  )
  assert text.split("\n\n")[1] == "    y = x * 2"
  assert "\n\nExamples:\n" in text
  plain = "Adds.\n\nA sentence with (brackets).\n\nArgs:\n  x: it."
  assert docstrings.rewritten(plain) == plain


def test_the_site_builds_without_warnings(tmp_path):
  pytest.importorskip("mkdocs", reason="needs the docs extra")
  pytest.importorskip("mkdocstrings", reason="needs the docs extra")
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
    cwd=ROOT,
    env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  public = reference.public()
  for name in public:
    page = (tmp_path / "reference" / name.page / "index.html").read_text()
    entry = _entry(page, [n.identifier for n in public if n.page == name.page], name)
    item = _item(name.identifier)
    if inspect.isfunction(item):
      assert "doc-signature" in entry, name.identifier
      for argument in inspect.signature(item).parameters:
        assert re.search(rf"<(code|span)[^>]*>{argument}</", entry), (name, argument)
  for page in tmp_path.glob("**/*.html"):
    assert "{{ " not in page.read_text(), page


def _entry(page, identifiers, name):
  """The part of a page of the reference that documents one name."""
  starts = sorted(page.index(f'id="{i}"') for i in identifiers)
  start = page.index(f'id="{name.identifier}"')
  end = next((s for s in starts if s > start), len(page))
  return page[start:end]


def _item(identifier):
  module, _, name = identifier.rpartition(".")
  return getattr(importlib.import_module(module), name)
