"""Generates the pages of the API reference from the exports of the packages.

The module does not need mkdocs; scripts/site/hooks.py passes the pages to it.
"""

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any, NamedTuple

import sparsejax as sj
from sparsejax.training import METHODS

# The pages of `sparsejax` itself, by the package that a name comes from.
_GROUPS = {
  "methods": "Methods",
  "transforms": "Mask transforms",
  "scores": "Scores",
  "distributions": "Distributions",
  "core": "Masks, states and structures",
}
_INTRODUCTIONS = {
  "methods": "Each wraps an optax optimizer, or finds masks before training.",
  "transforms": "Rules of mask updates; `sparsify` wraps an optimizer with one.",
  "scores": "Importance of weights: `(ScoreInputs) -> tree`, higher = more important.",
  "distributions": "Densities of layers, given the density of the whole network.",
  "core": "Finding, applying, packing, saving and replacing masks; structures.",
}
_LINK = re.compile(r"\]\[(sparsejax\.[\w.]+)\]")
# Methods that no config names, because they need more than an optimizer in the loop.
_MORE_METHODS = ("soft_threshold", "supermask")


class Name(NamedTuple):
  """A public name: its import path, and the page that documents it."""

  module: str
  name: str
  page: str

  @property
  def identifier(self) -> str:
    """The identifier for links."""
    return f"{self.module}.{self.name}"


@functools.cache
def public() -> tuple[Name, ...]:
  """Returns every public name once, at its shortest import path.

  Public are the names in the `__all__` of `sparsejax` and of its packages, and the
  functions of modules among them.
  """
  found = [Name("sparsejax", name, _group(name)) for name in sj.__all__]
  known = {id(getattr(sj, n.name)) for n in found}
  for package in packages():
    module = importlib.import_module(package)
    page = "core" if package.startswith("sparsejax.core") else package.split(".")[-1]
    for name in module.__all__:
      item = getattr(module, name)
      if id(item) not in known or not callable(item):
        found.append(Name(package, name, page))
        known.add(id(item))
  return tuple(found)


def packages() -> list[str]:
  """Returns the packages with an `__all__`; names of `sparsejax.core` come first."""
  names = [m.name for m in pkgutil.iter_modules(sj.__path__) if m.ispkg]
  names[names.index("core")] = "core.structures"
  modules = (f"sparsejax.{name}" for name in names)
  return [m for m in modules if hasattr(importlib.import_module(m), "__all__")]


def members(name: Name) -> list[str]:
  """Returns the public functions and classes of a module that is a public name."""
  module = getattr(importlib.import_module(name.module), name.name)
  if not inspect.ismodule(module):
    return []
  return [
    member
    for member, item in vars(module).items()
    if not member.startswith("_")
    and (inspect.isfunction(item) or inspect.isclass(item))
    and item.__module__ == module.__name__
  ]


def pages() -> dict[str, str]:
  """Returns the pages of the API reference: Markdown by path, the index first."""
  by_page: dict[str, list[Name]] = {page: [] for page in _GROUPS}
  for name in public():
    by_page.setdefault(name.page, []).append(name)
  index = ["# API reference", "", "`import sparsejax as sj`; names without a package"]
  index[-1] += " are `sj.<name>`."
  made = {}
  for page, names in by_page.items():
    if not names:
      continue
    title, introduction = _GROUPS.get(page), _INTRODUCTIONS.get(page, "")
    if title is None:
      module = importlib.import_module(f"sparsejax.{page}")
      title, introduction = f"`sparsejax.{page}`", inspect.getdoc(module) or ""
    body = [f"# {title}", "", introduction, ""]
    index += ["", f"## [{title}]({page}.md)", "", "| | |", "|---|---|"]
    for name in names:
      text = summary(getattr(importlib.import_module(name.module), name.name))
      index.append(f"| [`{name.name}`][{name.identifier}] | {text} |")
      # mkdocstrings only makes an anchor for the place of definition; add one here.
      anchor = f"[](){{#{name.identifier}}}"
      body += [anchor, "", f"::: {name.identifier}", *_members(name), ""]
    made[f"reference/{page}.md"] = "\n".join(body) + "\n"
  return {"reference/index.md": "\n".join(index) + "\n", **made}


def methods() -> list[str]:
  """Returns the methods that have a page, in the order of the navigation."""
  return list(dict.fromkeys([*METHODS, *_MORE_METHODS]))


def identifier(item: Any) -> str:
  """Returns the link identifier of a public function or class."""
  every = public()
  return next(
    n.identifier
    for n in every
    if getattr(importlib.import_module(n.module), n.name) is item
  )


def linked(text: str, up: str) -> str:
  """Replaces `[text][sparsejax.name]` by a link to the reference, `up` from the page.

  Raises:
    LookupError: the reference has no such name.
  """
  places = {name.identifier: name.page for name in public()}

  def link(match):
    if match[1] not in places:
      raise LookupError(f"the reference has no {match[1]}")
    return f"]({up}reference/{places[match[1]]}.md#{match[1]})"

  return _LINK.sub(link, text)


def summary(item: Any) -> str:
  """Returns the first line of a docstring, escaped for a table."""
  doc = inspect.getdoc(item) if callable(item) or inspect.ismodule(item) else ""
  return (doc or "").partition("\n")[0].replace("|", "\\|")


def _group(name: str) -> str:
  if name in methods():
    return "methods"
  module = getattr(getattr(sj, name), "__module__", "sparsejax.core")
  return module.split(".")[1]


def _members(name: Name) -> list[str]:
  inside = members(name)
  if not inside:
    return []
  return ["    options:", "      members:", *(f"        - {m}" for m in inside)]
