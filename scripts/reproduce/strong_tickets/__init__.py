"""Strong lottery tickets: Malach, Pensia, Orseau et al. (2020)."""
