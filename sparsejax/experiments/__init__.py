"""Runners of whole experiments and the results files that they write."""

__all__ = []
