"""Runners of whole experiments, and the results files they write."""

__all__ = []
