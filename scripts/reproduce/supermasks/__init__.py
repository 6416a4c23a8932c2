"""Ramanujan et al. (2020) and Zhou et al. (2019): supermasks of random networks."""
