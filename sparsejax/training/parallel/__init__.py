"""Several devices and processes as one run."""

from sparsejax.training.parallel._distributed import initialize as initialize_processes

__all__ = [
  "initialize_processes",
]
