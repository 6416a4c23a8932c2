r"""Finds lottery tickets and tests them: train, prune, rewind, again.

  python scripts/lottery.py --config=configs/digits_lottery.py --workdir=runs/lottery

Every field can be changed, those of training too:

  python scripts/lottery.py --config=configs/mnist_lenet300_lottery.py \
    --workdir=runs/lenet300 --config.rounds=20 --config.train.num_epochs=55

The same command again goes on with the level that is not there yet; more rounds,
controls and one-shot levels may be asked for. Each level keeps its masks, weights and
metrics in a folder of its own. Controls, by the names of --config.controls: reinit
(other weights, the same masks), reinit_signs (with the signs of the rewound ones),
reshuffle, constant (the live weights of a layer in another order, or all of one size),
random (the same weights, masks shuffled within layers), random_reinit (both).

It ends with a table and plots; --report_only makes these of what is there. What there
is to change, and the defaults, which the files of configs/ replace:

"""

import pathlib
import sys

import _command_line
from absl import flags, logging
from ml_collections import config_flags

from sparsejax.experiments.lottery import default_config, run_experiment, write_report
from sparsejax.training import TrainingError, current_commit

__doc__ = str(__doc__) + "".join(
  f"  --config.{name}={value}\n"
  for name, value in default_config().to_dict().items()
  if name != "train"
)

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A directory for this experiment alone."
)
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Train nothing.")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(str(_WORKDIR.value)).expanduser().absolute()
  try:
    if not _REPORT_ONLY.value:
      commit = current_commit(12) or ""
      run_experiment(_CONFIG.value, workdir, commit=commit)
    print(write_report(workdir))
  except KeyboardInterrupt:
    print("Stopped. The same command goes on with the level that was under way.")
    sys.exit(130)
  except (TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  _command_line.run(main)
