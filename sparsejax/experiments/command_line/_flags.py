"""Parsing of flags; an error in them prints one line instead of a traceback."""

import difflib
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags

from sparsejax.experiments.command_line._configs import (
  config_files,
  list_configs,
  other_script,
)


def run(main: Callable[[list[str]], Any]) -> None:
  """Parses the flags and runs `main`; Ctrl-C prints one line, not a traceback.

  Args:
    main: the program, `(argv) -> exit status or None`.
  """

  def checked(argv: list[str]) -> Any:
    if len(argv) > 1:
      sys.exit(f"Error: unknown arguments: {' '.join(argv[1:])}")
    try:
      return main(argv)
    except KeyboardInterrupt:
      print("Stopped.", file=sys.stderr)
      sys.exit(130)

  app.run(checked, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; an error in them prints one line, not a traceback.

  Args:
    argv: the command line; its first word is the path of the script.

  Returns:
    The arguments that are not flags, after the path of the script.
  """
  given = [a for a in argv[1:] if a.lstrip("-").partition("=")[0] == "config"]
  if "config" in flags.FLAGS and not _asks_for_help(argv):
    if not given:
      sys.exit(
        "Error: --config must name a config file. Available configs:\n\n"
        + list_configs(argv[0])
      )
    if "=" in given[-1]:
      _check_file_exists(argv[0], given[-1].partition("=")[2])
  try:
    rest = flags.FLAGS(argv)
  except SystemExit:
    # absl exits with 1 after printing the help; that is not an error.
    sys.exit(0 if _asks_for_help(argv) else 1)
  except BrokenPipeError:
    # The reader of the help, such as `head`, has closed the pipe. Python would flush
    # what is left into it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    sys.exit(f"Error: {_reason(e, argv)}\n(--help lists all flags.)")
  if given:
    _check_kind(argv[0], given[-1].partition("=")[2])
  return rest


def _reason(error: Exception, argv: list[str]) -> str:
  """Returns one line on what is wrong with the flags."""
  if isinstance(error, AttributeError | KeyError):
    while isinstance(error.args[0], Exception):
      error = error.args[0]
    # The message from ml_collections quotes the field, then one that is close, if any.
    field, *close = re.findall(r"[\"'](\w+)[\"']", str(error.args[0]))
    return f"config has no field {field!r}" + _instead(field, close, argv)
  if isinstance(error, flags.UnrecognizedFlagError):
    known = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    if error.flagname in (known or ()):
      return f"{error}; did you mean --config.{error.flagname}?"
  lines = str(error).strip().splitlines()
  if "Traceback" not in str(error):
    return " ".join(lines)
  # The message from ml_collections is a whole traceback; its last line has the error.
  return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1])


def _instead(field: str, close: list[str], argv: list[str]) -> str:
  """Returns what may have been meant by an unknown field of the config."""
  if close:
    return f"; did you mean {close[0]!r}?"
  # New entries of a dict cannot be set one by one.
  path = re.compile(rf"-+config\.([\w.]*_kwargs)\.{field}(?:=|$)")
  for found in filter(None, map(path.match, argv)):
    return f"; --config.{found[1]}=\"{{'{field}': VALUE}}\" sets the whole dict"
  return ""


def _check_kind(script: str, path: str) -> None:
  """Exits with an error if the config is one for another script."""
  other = other_script(script, flags.FLAGS["config"].value)
  if other is not None:
    sys.exit(
      f"Error: {path or 'the config'} is a config for scripts/{other}, not for"
      f" scripts/{pathlib.Path(script).name}. Available configs:\n\n"
      + list_configs(script)
    )


def _check_file_exists(script: str, value: str) -> None:
  # The colon of a Windows drive, as in C:\x.py:rigl, does not start a variant.
  path = value if pathlib.Path(value).exists() else value.rsplit(":", 1)[0]
  if pathlib.Path(path).is_file():
    return
  names = [file.stem for file in config_files(script)]
  close = difflib.get_close_matches(pathlib.Path(path).stem, names, 1)
  hint = f"; did you mean configs/{close[0]}.py?" if close else "."
  sys.exit(
    f"Error: there is no config {path}{hint} Available configs:\n\n"
    + list_configs(script)
  )


def _asks_for_help(argv: list[str]) -> bool:
  return any(a.lstrip("-").startswith(("help", "?")) or a == "-h" for a in argv[1:])
