"""Command lines of the scripts: flags with readable errors, and config files."""

from sparsejax.experiments.command_line._configs import (
  list_configs,
  load_config,
  override,
)
from sparsejax.experiments.command_line._flags import parse, run

__all__ = [
  "load_config",
  "override",
  "run",
]
