"""Generates the pages of methods and results from docstrings and results files.

The module does not need mkdocs; scripts/site/hooks.py passes the pages to it.
"""

import functools
import inspect
import json
import math
import re

import jax
import jax.numpy as jnp
import optax

from scripts import ROOT
from scripts.site import reference, tables
from sparsejax.analysis import method_name
from sparsejax.training import METHODS
from sparsejax.training import method_function as function

RESULTS = ROOT / "results"


def method(name: str, prose: str) -> str:
  """Returns the page of a method: its rule, the written text, and the measurements.

  Args:
    name: a name of `reference.methods`.
    prose: Markdown that begins with the title.
  """
  title, _, text = prose.partition("\n")
  paragraphs = (inspect.getdoc(function(name)) or "").split("\n\n")
  references = [p for p in paragraphs if p.startswith("References:")]
  parts = [title, "", f"**{paragraphs[0]}**", "", "```text", paragraphs[1], "```", ""]
  if references:
    source = " ".join(references[0].removeprefix("References:").split())
    parts += [f"*{source}*", ""]
  parts += [text.strip(), "", "## Results", "", measured(name)]
  parts += ["", "## Cost", "", costs(name), ""]
  fields = METHODS[name].fields if name in METHODS else {}
  if fields:
    values = ", ".join(f"`{field} = {value!r}`" for field, value in fields.items())
    parts += [f"In a config, `use_method` sets what the paper does: {values}.", ""]
  target = reference.identifier(function(name))
  parts.append(f"All arguments: [`{target}`][{target}].")
  return "\n".join(parts) + "\n"


def methods_index() -> str:
  """Returns a table of all methods."""
  lines = [
    "| method | | gradients per step | state, bytes per weight |",
    "|---|---|---|---|",
  ]
  for name in reference.methods():
    title = method_name(name)
    first = reference.summary(function(name))
    lines.append(
      f"| [{title}]({name}.md) | {first} | {gradients(name)} | {state(name)} |"
    )
  return "\n".join(lines) + "\n"


def measured(name: str) -> str:
  """Returns the rows of all results files that belong to one method."""
  parts: list[str] = []
  for path in sorted(RESULTS.glob("*.json")):
    if path.stem.startswith("benchmarks"):
      continue
    rows = [
      row
      for row in json.loads(path.read_text())["rows"]
      if name in row["case"].split("/") or path.stem.endswith(f"_{name}")
    ]
    if rows:
      title = path.stem.replace("_", " ")
      parts += [f"From [{title}](../results/{path.stem}.md):", ""]
      parts += [tables.table(rows), ""]
  if parts:
    return "\n".join(parts)
  return (
    "No results file has a row for it yet. `scripts/compare.py` compares it:\n"
    "\n```bash\npython scripts/compare.py --config=configs/digits.py"
    f" --workdir=runs/compare \\\n  --methods={name},dense --densities=0.05,0.1"
    " --seeds=0,1,2\n```"
    if name in METHODS
    else "No results file has a row for it yet."
  )


def costs(name: str) -> str:
  """Returns the measured and counted costs of a method in time and memory."""
  lines = [
    f"- Gradients at an ordinary step: {gradients(name)}.",
    f"- State in addition to the optimizer's: {state(name)}",
  ]
  lines[-1] += {"1": " byte per weight."}.get(state(name), " bytes per weight.")
  texts = {
    "off_step": "A step without a mask update takes {:.2f} times",
    "mask_update": "A mask update takes {:.1f} times",
  }
  for kind, text in texts.items():
    row = tables.find("benchmarks", f"{kind}/resnet50/{name}", "times_plain_step")
    if row is not None:
      lines.append(
        f"- {text.format(row['mean'])} a plain SGD-momentum step on ResNet-50's tree."
      )
  if name in METHODS and METHODS[name].dense_gradients:
    lines.append(
      "- Multiply-adds of a training step where zeros are skipped: (2 d + 1) / 3 of"
      " those of a dense step at density d, because gradients are dense."
    )
  return "\n".join(lines)


def gradients(name: str) -> str:
  """Describes the weights whose gradients are computed at an ordinary step."""
  if name in ("supermask", "soft_threshold"):
    return "of the forward params"
  if name in METHODS and METHODS[name].prunes_at_init:
    return "of live weights, once masks are found"
  if name in METHODS and METHODS[name].dense_gradients:
    return "of all weights"
  if name == "top_kast":
    return "of the backward set, which contains the live weights"
  return "of all weights: all are live" if name == "dense" else "of live weights"


@functools.cache
def state(name: str) -> str:
  """Counts the bytes per weight that a method's state adds to SGD with momentum."""
  if name in ("supermask", "soft_threshold"):
    return "none"
  n = 1024
  params = {"kernel": jax.ShapeDtypeStruct((n, n), jnp.float32)}
  inner = optax.sgd(0.1, momentum=0.9)
  known = METHODS.get(name)
  chosen = "static_sparse" if known and known.prunes_at_init else name
  make = function(chosen)
  fields = {"density": 0.1, "end_step": 1000, "update_every": 10}
  accepted = inspect.signature(make).parameters
  tx = make(inner, **{k: v for k, v in fields.items() if k in accepted})

  def size(init):
    leaves = jax.tree.leaves(jax.eval_shape(init, params))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)

  return f"{(size(tx.init) - size(inner.init)) / n**2:.2g}"


def results_index() -> str:
  """Returns a table of all results files."""
  lines = ["| file | rows | with published values | made by |", "|---|---|---|---|"]
  for path in sorted(RESULTS.glob("*.json")):
    content = json.loads(path.read_text())
    rows = content["rows"]
    papers = sum(row["paper"] is not None for row in rows)
    commands = dict.fromkeys(
      f"`{tables.command(run).split(' --')[0]}`" for run in content["runs"]
    )
    made_by = ", ".join(commands)
    lines.append(
      f"| [{path.stem}]({path.stem}.md) | {len(rows)} | {papers or ''} | {made_by} |"
    )
  return "\n".join(lines) + "\n"


def results(stem: str, prose: str) -> str:
  """Returns the page of a results file: the written text, the table, and its source."""
  content = json.loads((RESULTS / f"{stem}.json").read_text())
  head = prose.strip() or f"# {stem.replace('_', ' ').capitalize()}"
  rows = content["rows"]
  few = [row for row in rows if row["paper"] is not None]
  parts = [head, ""]
  if f"<!-- results: {stem} -->" not in prose:  # a page may place the table itself
    if few and len(few) < len(rows):
      parts += ["Beside published values:", "", tables.table(few), "", "All rows:", ""]
    parts += [tables.table(rows), "", tables.ERRORS, ""]
  parts += ["Made by", ""]
  for run in tables.runs(content, rows):
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    commit = (run["commit"] or "unknown")[:12]
    parts.append(
      f"- `{tables.command(run)}` at commit `{commit}`, {run['date']},"
      f" {run['hardware']}; {versions}."
    )
  sources = dict.fromkeys(row["source"] for row in rows if row["source"])
  if sources:
    parts += ["", "Published values:", "", *(f"- {source}" for source in sources)]
  notes = dict.fromkeys(row["note"] for row in rows if row["note"])
  if notes and len(notes) <= 12:
    parts += ["", "Notes:", "", *(f"- {note}" for note in notes)]
  return "\n".join(parts) + "\n"


_MARK = re.compile(r"\{\{ (\w+) (\S+) (\w+)(?: (\S+))? \}\}")


def filled(text: str) -> str:
  """Replaces `{{ file case metric }}`, or `... paper }}`, by numbers.

  Raises:
    LookupError: there is no such row.
  """
  return _MARK.sub(lambda m: tables.value(*filter(None, m.groups())), text)
