"""Reading and listing of config files, which are Python files with a `get_config`."""

import ast
import importlib
import importlib.util
import os
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

# Scripts that accept the configs of another one.
_SAME_CONFIGS = {"instability.py": "lottery.py", "compare.py": "train.py"}
# The fields of each script's configs are those of a `default_config`.
_PACKAGES = {
  "train.py": "sparsejax.training",
  "lottery.py": "sparsejax.experiments.lottery",
  "grow_and_prune.py": "sparsejax.experiments.nest",
}


def load_config(path: str | os.PathLike[str], *variant: str) -> Any:
  """Calls `get_config` of a config file, for one of its variants.

  Args:
    path: path of the file, such as `configs/digits.py`.
    *variant: the variant, as in `--config=path.py:variant`; none is the default.

  Returns:
    The config, an `ml_collections.ConfigDict`.

  Example:
    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp(), "toy.py")
    >>> _ = file.write_text("def get_config(method='rigl'): return {'method': method}")
    >>> load_config(file, "snip")
    {'method': 'snip'}
  """
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"path must name a Python file, got {path}")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*variant)


def override(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
  """Applies the overrides `--config.<field>=<value>` of the command line to a config.

  Args:
    config: an `ml_collections.ConfigDict`, which is changed.

  Returns:
    The same config.
  """
  config.update_from_flattened_dict(
    config_flags.get_override_values(flags.FLAGS["config"])
  )
  return config


def config_files(script: str) -> list[pathlib.Path]:
  """Returns the files of `configs/`, the sibling of the folder of a script."""
  return sorted((pathlib.Path(script).resolve().parent.parent / "configs").glob("*.py"))


def list_configs(script: str) -> str:
  """Lists the config files for a script, with a description of each.

  Args:
    script: path of the script. Listed are the configs whose docstring launches it, or
      else the script that accepts the same configs.

  Returns:
    One line per file: its path, and the first line of its docstring.
  """
  docs = {
    path.name: ast.get_docstring(ast.parse(path.read_text())) or ""
    for path in config_files(script)
  }
  own = pathlib.Path(script).name
  chosen: dict[str, str] = {}
  for name in (own, _SAME_CONFIGS.get(own, own)):
    chosen = {file: doc for file, doc in docs.items() if f"scripts/{name}" in doc}
    if chosen:
      break
  width = max(map(len, chosen), default=0)
  return "\n".join(
    f"  configs/{file:<{width}}  {doc.partition(chr(10))[0]}"
    for file, doc in chosen.items()
  )


def other_script(script: str, config: Any) -> str | None:
  """Returns the script that a config is for, if it is not for the given one.

  Args:
    script: path of the script that was given the config.
    config: an `ml_collections.ConfigDict`.

  Returns:
    The name of the other script, such as `lottery.py`; None if the config is for the
    given script, or for none.
  """
  own = pathlib.Path(script).name
  own = _SAME_CONFIGS.get(own, own)

  def fits(name: str) -> bool:
    known = importlib.import_module(_PACKAGES[name]).default_config()
    return set(config) <= set(known)

  if own not in _PACKAGES or fits(own):
    return None
  return next((name for name in _PACKAGES if fits(name)), None)
