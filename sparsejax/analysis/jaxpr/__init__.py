"""Reads a function as a flat program: traces, evaluates and propagates flags."""

from sparsejax.analysis.jaxpr._movement import MOVES, move
from sparsejax.analysis.jaxpr._program import (
  Operation,
  Program,
  evaluate,
  operands,
  trace,
  varying,
)

__all__ = []
