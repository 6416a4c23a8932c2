r"""Finds lottery tickets by training, pruning and rewinding, and tests them.

  python scripts/lottery.py --config=configs/digits_lottery.py --workdir=runs/lottery

Every field can be changed, including those of training:

  python scripts/lottery.py --config=configs/mnist_lenet300_lottery.py \
    --workdir=runs/lenet300 --config.rounds=20 --config.train.num_epochs=55

Running the same command again resumes with the first unfinished level; it may then ask
for more rounds, controls and one-shot levels. Each level has its own folder with masks,
weights and metrics. The controls of --config.controls are: reinit (new weights, same
masks), reinit_signs (new weights with the signs of the rewound ones), reshuffle and
constant (the live weights of a layer permuted, or all with one magnitude), random (same
weights, masks shuffled within layers), random_reinit (new weights and shuffled masks).

At the end the script writes a table and plots; --report_only writes them from the
levels that are finished. These are all fields of a config, with their defaults,
meanings and rules; config files set other values:

"""

import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from sparsejax.experiments import command_line
from sparsejax.experiments.lottery import config_help, run_experiment, write_report
from sparsejax.training import TrainingError

__doc__ = str(__doc__) + config_help()

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="A config file, such as configs/digits_lottery.py."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A new directory, or that of the experiment to resume."
)
_REPORT_ONLY = flags.DEFINE_bool(
  "report_only", False, "Train nothing; report the finished levels."
)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(str(_WORKDIR.value)).expanduser().absolute()
  try:
    if not _REPORT_ONLY.value:
      run_experiment(_CONFIG.value, workdir)
    print(write_report(workdir))
  except KeyboardInterrupt:
    print("Stopped. The same command resumes the level that was interrupted.")
    sys.exit(130)
  except (TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  command_line.run(main)
