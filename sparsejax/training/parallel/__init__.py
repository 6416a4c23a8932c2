"""Training on several devices and processes."""

from sparsejax.training.parallel._distributed import initialize as initialize_processes

__all__ = [
  "initialize_processes",
]
