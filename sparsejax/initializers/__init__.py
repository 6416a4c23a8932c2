"""Initial kernels for networks of any depth, and the mean-field theory behind them."""

from sparsejax.core import nearest_orthogonal
from sparsejax.initializers import mean_field
from sparsejax.initializers._advice import trainable_depth
from sparsejax.initializers._block_orthogonal import block_orthogonal
from sparsejax.initializers._delta_orthogonal import delta_orthogonal
from sparsejax.initializers._gaussian import gaussian, he, lecun
from sparsejax.initializers._orthogonal import haar
from sparsejax.initializers._sparse_orthogonal import (
  orthogonal_support,
  sparse_orthogonal,
)

__all__ = [
  "block_orthogonal",
  "delta_orthogonal",
  "gaussian",
  "haar",
  "he",
  "lecun",
  "mean_field",
  "nearest_orthogonal",
  "orthogonal_support",
  "sparse_orthogonal",
  "trainable_depth",
]
