"""Methods that find masks before the first step; training with them is static."""

from sparsejax.methods.at_initialization._grasp import grasp
from sparsejax.methods.at_initialization._phew import phew
from sparsejax.methods.at_initialization._snip import snip
from sparsejax.methods.at_initialization._synflow import synflow

__all__ = ["grasp", "phew", "snip", "synflow"]
