"""Belkin et al. (2019): double descent with random features."""
