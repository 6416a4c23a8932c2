"""Hooks of mkdocs that add the generated pages and fill in numbers."""

import shutil

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from scripts import ROOT
from scripts.site import pages, reference

_DOCS = ROOT / "docs"


def on_config(config):
  """Adds the generated pages to the navigation."""
  sections = {name: part for entry in config.nav for name, part in entry.items()}
  sections["Methods"] += [f"methods/{name}.md" for name in reference.methods()]
  sections["Results"] += [f"results/{stem}.md" for stem in _stems()]
  sections["API reference"] += list(reference.pages())
  sections["Notebooks"] += _notebooks()
  return config


def on_files(files, config):
  """Generates the pages."""
  made = dict(reference.pages())
  for name in reference.methods():
    title = f"# {pages.method_name(name)}\n"
    made[f"methods/{name}.md"] = pages.method(name, _prose(f"methods/{name}", title))
  for stem in _stems():
    made[f"results/{stem}.md"] = pages.results(stem, _prose(f"results/{stem}", ""))
  # Leave out prose about results that do not exist yet.
  for path in _DOCS.glob("results/*.md"):
    name = f"results/{path.name}"
    if name not in made and path.stem not in ("index", "accelerators"):
      files.remove(files.get_file_from_path(name))
  for path, text in made.items():
    if (old := files.get_file_from_path(path)) is not None:
      files.remove(old)
    files.append(File.generated(config, path, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Fills in tables and numbers."""
  del config, files
  path = page.file.src_uri
  try:
    markdown = reference.linked(pages.filled(markdown), "../" * path.count("/"))
  except LookupError as e:
    raise PluginError(f"{path}: {e}") from e
  for mark, make in (
    ("<!-- methods -->", pages.methods_index),
    ("<!-- results -->", pages.results_index),
  ):
    if mark in markdown:
      markdown = markdown.replace(mark, make())
  return markdown


def _notebooks() -> list[str]:
  """Returns the pages of the notebooks, and copies those that were not executed.

  `python -m scripts.site.notebooks --site` writes executed notebooks, with their
  figures, into docs/notebooks. The others appear without outputs.
  """
  folder = _DOCS / "notebooks"
  folder.mkdir(exist_ok=True)
  names = []
  for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
    page = folder / path.name
    if not page.exists() or page.stat().st_mtime < path.stat().st_mtime:
      shutil.copyfile(path, page)
    names.append(f"notebooks/{path.name}")
  return names


def _stems() -> list[str]:
  return sorted(path.stem for path in pages.RESULTS.glob("*.json"))


def _prose(name: str, otherwise: str) -> str:
  path = _DOCS / f"{name}.md"
  return path.read_text() if path.exists() else otherwise
