"""Grow-and-prune synthesis (NeST), run from a config."""

from sparsejax.experiments.nest._config import config_help, default_config
from sparsejax.experiments.nest._milestones import load as load_milestone
from sparsejax.experiments.nest._milestones import read as read_milestones
from sparsejax.experiments.nest._plots import write as write_plots
from sparsejax.experiments.nest._synthesis import grow_and_prune

__all__ = [
  "default_config",
  "grow_and_prune",
  "load_milestone",
  "read_milestones",
]
