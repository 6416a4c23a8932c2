"""How mkdocstrings is to read this project, as a griffe extension."""

import griffe


class Docstrings(griffe.Extension):
  """Shows rules as they stand and examples as code, and finds what is imported."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    """Rewrites a docstring before it is parsed."""
    del kwargs
    if obj.docstring is not None:
      obj.docstring.value = rewritten(obj.docstring.value)

  def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
    """Lets an imported name be what it is at run time.

    griffe takes `methods.rigl` for the module of that name. Python gives the
    function, which the package imports from it.
    """
    del kwargs
    modules = list(_modules(pkg))
    for module in modules:
      for name, member in list(module.members.items()):
        if not isinstance(member, griffe.Alias):
          continue
        try:
          target = member.final_target
        except (griffe.AliasResolutionError, griffe.CyclicAliasError):
          continue  # of another package
        if not target.is_module:
          module.members[name] = target
    for module in modules:
      for name, inner in list(module.modules.items()):
        same = inner.members.get(name)
        if same is not None and not same.is_alias and not same.is_module:
          module.members[name] = same


def _modules(module: griffe.Module):
  yield module
  for inner in module.modules.values():
    if not inner.is_alias:
      yield from _modules(inner)


def rewritten(text: str) -> str:
  r"""Indents the rule, which is not Markdown, and names sections as griffe does.

  Example:
    >>> print(rewritten("Adds.\n\ny = x * 2\n\nArgs:\n  x: a number."))
    Adds.
    <BLANKLINE>
        y = x * 2
    <BLANKLINE>
    Args:
      x: a number.
  """
  paragraphs = text.replace("\nExample:\n", "\nExamples:\n").split("\n\n")
  if len(paragraphs) > 1 and is_rule(paragraphs[1]):
    lines = paragraphs[1].split("\n")
    paragraphs[1] = "\n".join(f"    {line.strip()}" for line in lines)
  return "\n\n".join(paragraphs)


def is_rule(paragraph: str) -> bool:
  """Whether a paragraph is a formula: no sentence, no section, and a sign in it."""
  first = paragraph.partition("\n")[0]
  if paragraph.rstrip().endswith((".", ":")) or first.rstrip().endswith(":"):
    return False
  return any(sign in paragraph for sign in ("=", "<-", "->", " > ", "(", "~"))
