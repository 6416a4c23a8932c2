"""How a total of live weights is laid out over the layers at the start."""

from sparsejax.distributions.override import override
from sparsejax.distributions.static import erdos_renyi, erk, uniform

__all__ = ["erdos_renyi", "erk", "override", "uniform"]
