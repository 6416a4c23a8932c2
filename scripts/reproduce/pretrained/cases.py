"""The densities and methods that both networks are pruned by."""

import sparsejax as sj

DENSITIES = {
  "density=0.5": (0.5, None),
  "n_m=2:4": (None, sj.n_m(2, 4)),
  "density=0.3": (0.3, None),
}
METHODS = ("sparse_gpt", "wanda", "ria", "magnitude")
