r"""Grows a network from a sparse seed, then prunes it (NeST).

  python scripts/grow_and_prune.py --config=configs/mnist_lenet300_nest.py \
    --workdir=runs/lenet300_nest

A config may have variants (`file.py:variant`), and every field can be changed, as in
`--config.seed=1`. Running the same command again resumes after the last finished round.
A workdir contains one run; another config is rejected there. At the end
`connections.png` shows each layer's connections over time, and `inputs.png` which
pixels are still read. These are all fields of a config, with their defaults, meanings
and rules; config files set other values:

"""

import sys

from absl import flags, logging
from ml_collections import config_flags

from sparsejax import training
from sparsejax.experiments import command_line
from sparsejax.experiments.nest import config_help, grow_and_prune, write_plots

__doc__ = str(__doc__) + config_help()

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="A config file, such as configs/mnist_lenet300_nest.py.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A new directory, or that of the run to resume."
)


def main(argv: list[str]) -> int:
  del argv
  logging.set_verbosity(logging.WARNING)
  try:
    found = grow_and_prune(_CONFIG.value, str(_WORKDIR.value))
  except (training.TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")
  if len(found) < len(_CONFIG.value.milestones):
    return 0  # stopped, or accuracy could not be recovered
  write_plots(str(_WORKDIR.value))
  return 0


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  command_line.run(main)
