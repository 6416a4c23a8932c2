"""Command line handling of the scripts: flags with readable errors, and configs."""

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
  """Parses the flags and runs `main`; Ctrl-C prints one line, not a traceback."""

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
  """Parses the flags; an error in them prints one line, not a traceback."""
  given = [a for a in argv[1:] if a.lstrip("-").partition("=")[0] == "config"]
  if "config" in flags.FLAGS and not _asks_for_help(argv):
    if not given:
      sys.exit(f"Error: --config must name a file. There are:\n\n{configs(argv[0])}")
    if "=" in given[-1]:
      _check_there(argv[0], given[-1].partition("=")[2])
  try:
    return flags.FLAGS(argv)
  except SystemExit:
    # absl exits with 1 after printing the help; that is not an error.
    sys.exit(0 if _asks_for_help(argv) else 1)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    # The message from ml_collections is a whole traceback; its last line has the error.
    lines = str(e).strip().splitlines()
    text = lines[-1] if "Traceback" in str(e) else " ".join(lines)
    text = text.removeprefix("sparsejax.training.ConfigError: ")
    if isinstance(e, AttributeError | KeyError):
      while isinstance(e.args[0], Exception):
        e = e.args[0]
      text = "unknown field of the config: " + " ".join(str(e.args[0]).split())
    sys.exit(f"Error: {text}\n(--help says what there is.)")


def configs(script: str) -> str:
  """Lists the files of configs/ for a script, with a description of each.

  Args:
    script: path of the script. Listed are the configs whose docstring launches it, or
      else those that launch scripts/train.py.

  Returns:
    One line per file: its path, and the first line of its docstring.
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
  """Calls `get_config` of a config file, for one of its variants.

  Args:
    path: path of the file, such as `ROOT / "configs/digits.py"`.
    *variant: the variant, as in `--config=path.py:variant`; none is the default.
  """
  return runpy.run_path(str(path))["get_config"](*variant)


def override(config: Any) -> Any:
  """Applies --config.<field>=<value> of the command line to another config."""
  config.update_from_flattened_dict(
    config_flags.get_override_values(flags.FLAGS["config"])
  )
  return config


def _check_there(script: str, value: str) -> None:
  # The colon of a Windows drive, as in C:\x.py:rigl, does not start a variant.
  path = value if pathlib.Path(value).exists() else value.rsplit(":", 1)[0]
  if pathlib.Path(path).is_file():
    return
  names = {p.stem: p for p in (ROOT / "configs").glob("*.py")}
  close = difflib.get_close_matches(pathlib.Path(path).stem, names, 1)
  hint = f"; did you mean configs/{close[0]}.py?" if close else "."
  sys.exit(f"Error: there is no config {path}{hint} There are:\n\n{configs(script)}")


def _asks_for_help(argv: list[str]) -> bool:
  return any(a.lstrip("-").startswith(("help", "?")) or a == "-h" for a in argv[1:])
