"""The published errors of sparse momentum on MNIST."""

SOURCE = "Dettmers & Zettlemoyer 2019, results/{} of the authors' repository"
# Percent of error and its standard error, by density: the sparse momentum of the tables
# in results/ of the authors' repository. (At 5 % the second table has 1.47.)
TABLES = {
  "lenet300": {
    "MNIST_compression_comparison_lenet300-100.csv": {
      0.01: (2.36, 0.044),
      0.015: (2.053, 0.032),
      0.018: (1.984, 0.053),
      0.02: (1.99, 0.019),
      0.044: (1.552, 0.027),
      0.05: (1.53, 0.02),
      0.08: (1.447, 0.014),
      0.083: (1.426, 0.02),
    },
    "MNIST_sparse_summary.csv": {
      0.03: (1.7, 0.055),
      0.04: (1.58, 0.023),
      0.1: (1.33, 0.026),
    },
  },
  "lenet5": {
    "MNIST_compression_comparison_lenet5.csv": {
      0.004: (1.403, 0.088),
      0.005: (1.144, 0.024),
      0.009: (0.894, 0.033),
      0.01: (0.83, 0.04),
      0.02: (0.76, 0.022),
      0.05: (0.69, 0.021),
      0.08: (0.645, 0.019),
      0.093: (0.642, 0.03),
    },
  },
}
# By case: error, standard error, and the name of the table.
PAPER = {
  f"{model}/density={density:g}": (*values, name)
  for model, tables in TABLES.items()
  for name, table in tables.items()
  for density, values in table.items()
}
