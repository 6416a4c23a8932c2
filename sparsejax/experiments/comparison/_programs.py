"""A folder of compiled programs, which the runs of a comparison share."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_FOLDER = "jax_compilation_cache_dir"
# By default, JAX compiles programs again that took less than a second.
_LEAST = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def shared_programs(workdir: pathlib.Path) -> Iterator[None]:
  """Compiles each program once, by JAX's cache on disk, in `<workdir>/.compiled`.

  Each run traces its functions anew. Those of runs that differ in the seed lower to the
  same programs, and other fields change one of them: `density` the initialization,
  `learning_rate` or `drop_fraction` the training loop. The cache serves several
  processes, and runs that are resumed. One that the user has set up, by
  `JAX_COMPILATION_CACHE_DIR`, is used instead.

  Args:
    workdir: the folder of all runs.
  """
  before = {name: getattr(jax.config, name) for name in (_FOLDER, _LEAST)}
  if before[_FOLDER]:
    yield
    return
  try:
    _configure({_FOLDER: str(workdir.absolute() / ".compiled"), _LEAST: 0.0})
    yield
  finally:
    _configure(before)


def _configure(options: Mapping[str, Any]) -> None:
  """Sets options of JAX, which reads them at the first compilation after a reset."""
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
