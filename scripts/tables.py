"""Writes the tables of README.md and docs/ from results/*.json, between their marks.

python scripts/tables.py

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; `NAME published` has
only the rows with a published value. A test holds the files equal to what this script
would write.
"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MARK = re.compile(
  r"(<!-- results: (\w+)( published)? -->\n).*?(<!-- end -->)", re.DOTALL
)


def number(value: float | None) -> str:
  if value is None:
    return ""
  return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def cells(row: dict) -> tuple[str, ...]:
  """Case, metric, mean and error, n, paper."""
  ours = number(row["mean"])
  if row["sem"] is not None:
    ours += f" ± {row['sem']:.2g}"
  return row["case"], row["metric"], ours, str(row["n"]), number(row["paper"])


def table(name: str, published: bool = False) -> str:
  """A results file as a Markdown table: case, metric, mean and error, n, paper."""
  path = ROOT / f"results/{name}.json"
  content = json.loads(path.read_text())
  lines = ["| case | metric | ours | n | paper |", "|---|---|---|---|---|"]
  rows = [r for r in content["rows"] if r["paper"] is not None or not published]
  lines += [f"| {' | '.join(cells(row))} |" for row in rows]
  where = f"`{content['command']}`, {content['hardware']}"
  return "\n".join([*lines, "", f"Made by {where}."]) + "\n"


def filled(text: str) -> str:
  return _MARK.sub(lambda m: m[1] + table(m[2], bool(m[3])) + m[4], text)


def files() -> list[pathlib.Path]:
  return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main() -> None:
  for path in files():
    old = path.read_text()
    if (new := filled(old)) != old:
      path.write_text(new)
      print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
  main()
