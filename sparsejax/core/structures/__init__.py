"""Structures."""

from sparsejax.core.structures.base import Structure

__all__ = ["Structure"]
