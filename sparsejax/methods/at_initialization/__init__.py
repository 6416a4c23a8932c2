"""Methods that find masks before the first step; training with them is static."""

from sparsejax.methods.at_initialization._grasp import grasp
from sparsejax.methods.at_initialization._ntk_sap import ntk_sap
from sparsejax.methods.at_initialization._phew import phew
from sparsejax.methods.at_initialization._prospr import prospr
from sparsejax.methods.at_initialization._snip import snip
from sparsejax.methods.at_initialization._synflow import synflow

__all__ = ["grasp", "ntk_sap", "phew", "prospr", "snip", "synflow"]
