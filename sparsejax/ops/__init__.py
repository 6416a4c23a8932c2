"""Products that skip the dead blocks of a kernel in the forward and backward pass."""

from sparsejax.ops._block_conv import block_conv_general_dilated
from sparsejax.ops._block_dot import block_dot, block_dot_general
from sparsejax.ops._blocks import live_blocks
from sparsejax.ops._explain import Product, explain
from sparsejax.ops._mark import mark_dead

__all__ = [
  "Product",
  "block_conv_general_dilated",
  "block_dot",
  "block_dot_general",
  "explain",
  "live_blocks",
  "mark_dead",
]
