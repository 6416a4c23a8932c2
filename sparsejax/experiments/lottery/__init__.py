"""Lottery ticket experiments: train, prune, rewind and repeat, with controls."""

from sparsejax.experiments.lottery._config import config_help, conv_net, default_config
from sparsejax.experiments.lottery._experiment import run_experiment
from sparsejax.experiments.lottery._instability import run_instability
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.experiments.lottery._levels import read_metrics as read_level_metrics
from sparsejax.experiments.lottery._report import Outcome
from sparsejax.experiments.lottery._report import read as read_outcome
from sparsejax.experiments.lottery._report import write as write_report

__all__ = [
  "default_config",
  "run_experiment",
  "run_instability",
  "write_report",
]
