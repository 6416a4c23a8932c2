"""Dai, Yin and Jha (2017), NeST: growing and pruning the LeNets."""
