"""Trials of kills, damaged checkpoints, long runs and device layouts."""
