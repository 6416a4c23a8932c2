"""A griffe extension that adapts this project's docstrings for mkdocstrings."""

import griffe


class Docstrings(griffe.Extension):
  """Formats the formulas and examples of docstrings as code."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    """Rewrites a docstring before it is parsed."""
    del kwargs
    if obj.docstring is not None:
      obj.docstring.value = rewritten(obj.docstring.value)


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
  """Returns whether a paragraph is a formula: neither sentence nor section."""
  first = paragraph.partition("\n")[0]
  if paragraph.rstrip().endswith((".", ":")) or first.rstrip().endswith(":"):
    return False
  return any(sign in paragraph for sign in ("=", "<-", "->", " > ", "(", "~"))
