r"""Measures from which training step a network is stable to the noise of SGD.

  python scripts/instability.py --config=configs/digits_lottery.py \
    --workdir=runs/tickets --steps=0,100,400

For each step k a network is trained to k, and from there two copies are trained to the
end with different data orders. The instability is the rise of the test error on the
line between the two (at 30 points). Below 2 points a network counts as stable. With
--level, the tickets of an experiment of scripts/lottery.py in the same workdir are
measured; k is then the step to which they are rewound. Finished steps are not repeated.
The script writes the plot `instability.png`.
"""

import pathlib
import sys

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from sparsejax import analysis
from sparsejax.experiments import command_line
from sparsejax.experiments.lottery import run_instability
from sparsejax.training import TrainingError

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="A config file, such as configs/digits_lottery.py."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the experiment.")
_STEPS = flags.DEFINE_list("steps", ["0"], "Steps from which the data orders differ.")
_LEVEL = flags.DEFINE_integer("level", 0, "Level of the tickets; 0: dense network.", 0)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(str(_WORKDIR.value)).expanduser().absolute()
  try:
    steps = sorted({int(step) for step in _STEPS.value})
    found = run_instability(_CONFIG.value, workdir, steps, _LEVEL.value)
  except KeyboardInterrupt:
    print("Stopped. The same command repeats the step that was interrupted.")
    sys.exit(130)
  except (TrainingError, OSError, ValueError) as e:
    sys.exit(f"Error: {e}")
  for step, values in found.items():
    print(f"step {step:>7,}  {values.mean():6.2f} points  {np.round(values, 2)}")
  curves = {step: values.tolist() for step, values in found.items()}
  analysis.plot_instability(curves).savefig(workdir / "instability.png", dpi=160)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  command_line.run(main)
