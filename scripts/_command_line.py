"""What the scripts share: flags, whose mistakes end in lines that help, and configs."""

import ast
import difflib
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
_AS = {"instability.py": "lottery.py"}  # takes the configs of


def run(main: Callable[[list[str]], Any]) -> None:
  """Parses the flags and runs; Ctrl-C where nothing can be saved ends in a line."""

  def stopping(argv: list[str]) -> Any:
    if len(argv) > 1:
      sys.exit(f"Error: unknown arguments: {' '.join(argv[1:])}")
    try:
      return main(argv)
    except KeyboardInterrupt:
      print("Stopped.", file=sys.stderr)
      sys.exit(130)

  app.run(stopping, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a mistake in them ends in one line, not in a traceback."""
  given = [a for a in argv[1:] if a.lstrip("-").partition("=")[0] == "config"]
  if "config" in flags.FLAGS and not _asks_for_help(argv):
    if not given:
      sys.exit(f"Error: --config must name a file. There are:\n\n{configs(argv[0])}")
    if "=" in given[-1]:
      _check_there(argv[0], given[-1].partition("=")[2])
  try:
    return flags.FLAGS(argv)
  except SystemExit:
    # What absl ends with where it has shown the help that was asked for.
    sys.exit(0 if _asks_for_help(argv) else 1)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    # ml_collections hands over a whole traceback, whose last line says what is wrong.
    lines = str(e).strip().splitlines()
    text = lines[-1] if "Traceback" in str(e) else " ".join(lines)
    text = text.removeprefix("sparsejax.training.ConfigError: ")
    if isinstance(e, AttributeError | KeyError):
      while isinstance(e.args[0], Exception):
        e = e.args[0]
      text = "unknown field of the config: " + " ".join(str(e.args[0]).split())
    sys.exit(f"Error: {text}\n(--help says what there is.)")


def configs(script: str) -> str:
  """The files of configs/ that a script is launched with, and what each is.

  Args:
    script: its path; those whose docstring launches it are listed, or else those that
      launch scripts/train.py.

  Returns:
    A line a file: where it is, and the first line of its docstring.
  """
  found = {}
  for path in sorted((ROOT / "configs").glob("*.py")):
    found[path.name] = ast.get_docstring(ast.parse(path.read_text())) or ""
  own = pathlib.Path(script).name
  for name in (own, _AS.get(own, own), "train.py"):
    fit = {file: t for file, t in found.items() if f"scripts/{name}" in t}
    if fit:
      break
  width = max(map(len, fit))
  return "\n".join(
    f"  configs/{file:<{width}}  {text.partition(chr(10))[0]}"
    for file, text in fit.items()
  )


def load_config(path: str | pathlib.Path, *variant: str) -> Any:
  """What a config file's `get_config` gives, for a variant of it.

  Args:
    path: of the file; one of this project's is `ROOT / "configs/digits.py"`.
    *variant: as behind the colon in `--config=path.py:variant`; none is the default.
  """
  return runpy.run_path(str(path))["get_config"](*variant)


def override(config: Any) -> Any:
  """Puts the command line's --config.<field>=<value> into another config."""
  config.update_from_flattened_dict(
    config_flags.get_override_values(flags.FLAGS["config"])
  )
  return config


def _check_there(script: str, value: str) -> None:
  # A drive's colon, as in C:\x.py:rigl, is not a variant's.
  path = value if pathlib.Path(value).exists() else value.rsplit(":", 1)[0]
  if pathlib.Path(path).is_file():
    return
  names = {p.stem: p for p in (ROOT / "configs").glob("*.py")}
  close = difflib.get_close_matches(pathlib.Path(path).stem, names, 1)
  hint = f"; did you mean configs/{close[0]}.py?" if close else "."
  sys.exit(f"Error: there is no config {path}{hint} There are:\n\n{configs(script)}")


def _asks_for_help(argv: list[str]) -> bool:
  return any(a.lstrip("-").startswith(("help", "?")) or a == "-h" for a in argv[1:])
