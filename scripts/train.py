r"""Trains a network that is sparse from the first step to the last.

  python scripts/train.py --config=configs/digits.py --workdir=runs/digits

A config file may have variants, and every field can be changed:

  python scripts/train.py --workdir=runs/rigl \
    --config=configs/mnist_lenet300.py:rigl --config.density=0.02

Running the same command again resumes a stopped run. A workdir contains one run;
another config is rejected there. SIGTERM and Ctrl-C write a checkpoint before they end
the run (exit status 0 and 130). A run that ends with a loss of NaN exits with 1.
scripts/report.py writes an HTML page of the result.

On several devices, such as eight virtual CPU devices (`data=-1` uses all devices):

  JAX_NUM_CPU_DEVICES=8 python scripts/train.py --workdir=runs/eight \
    --config=configs/digits.py --config.mesh.data=8 --config.mesh.fsdp=True

With several processes, run the same command in each, with a workdir on a shared file
system; only the first process writes and prints. Under SLURM, Open MPI and on TPU pods
the processes find each other. Elsewhere pass --coordinator, --num_processes and
--process_id, or set the environment variables SPARSEJAX_COORDINATOR,
SPARSEJAX_NUM_PROCESSES and SPARSEJAX_PROCESS_ID.

Without --config, the script lists the files of configs/. These are all fields of a
config, with their defaults, meanings and rules; config files set other values:

"""

import signal
import sys

from absl import flags, logging
from ml_collections import config_flags

from sparsejax import training
from sparsejax.experiments import command_line
from sparsejax.training.parallel import initialize_processes

__doc__ = str(__doc__) + training.config_help()

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  help_string="A config file, with an optional variant: path.py:variant.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A new directory, or that of the run to resume."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "host:port of process 0, for a run of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process, from 0."
)


def main(argv: list[str]) -> int:
  del argv
  # Hide jax's messages about the platforms that it looks for.
  logging.set_verbosity(logging.WARNING)
  try:
    initialize_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    result = training.train_and_evaluate(_CONFIG.value, str(_WORKDIR.value))
  except (training.TrainingError, OSError) as e:
    sys.exit(f"Error: {e}")
  if result.diverged:
    sys.exit(
      "Error: the run diverged: its test loss is not finite. Try a learning_rate below"
      f" {_CONFIG.value.learning_rate}."
    )
  return 130 if result.stopped_by is signal.SIGINT else 0


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  command_line.run(main)
