"""Published test accuracies that comparisons show next to their own."""

# Tables in the folder `results` of the repository of Dettmers & Zettlemoyer (2019).
_SOURCE = "Dettmers & Zettlemoyer 2019, results/{} of the authors' repository"
_SNIP = "Lee et al. 2019 (SNIP), by results/{} of Dettmers & Zettlemoyer's repository"
_COMPRESSION = "MNIST_compression_comparison_{}.csv"
_FIGURES = {
  ("mnist", "lenet300"): "MNIST_sparse_summary.csv",
  ("mnist", "lenet5"): _COMPRESSION.format("lenet5"),
  ("cifar10", "wide_resnet_28_2"): "WRN-28-2_results_summary.csv",
}

# Percent, by data set and model, then by method, then by density.
_ACCURACY: dict[tuple[str, str], dict[str, dict[float, float]]] = {
  ("mnist", "lenet300"): {
    "dense": {1.0: 98.69},
    "sparse_momentum": {
      0.01: 97.53,
      0.02: 98.20,
      0.03: 98.30,
      0.04: 98.42,
      0.05: 98.53,
      0.1: 98.67,
    },
    "dsr": {
      0.01: 97.54,
      0.02: 98.14,
      0.03: 98.20,
      0.04: 98.23,
      0.05: 98.32,
      0.1: 98.44,
    },
    "sparse_evolution": {
      0.01: 95.80,
      0.02: 97.74,
      0.03: 98.06,
      0.04: 98.10,
      0.05: 98.14,
      0.1: 98.39,
    },
    "deep_r": {
      0.01: 94.00,
      0.02: 98.21,
      0.03: 98.22,
      0.04: 98.30,
      0.05: 98.06,
      0.1: 98.19,
    },
    "snip": {0.02: 97.6, 0.05: 98.4},
  },
  ("mnist", "lenet5"): {
    "sparse_momentum": {0.01: 99.17, 0.02: 99.24, 0.05: 99.31},
    "snip": {0.01: 98.9, 0.02: 99.2},
  },
  ("cifar10", "wide_resnet_28_2"): {
    "dense": {1.0: 94.70},
    "sparse_momentum": {0.1: 93.61, 0.2: 94.32, 0.3: 94.58, 0.4: 94.68, 0.5: 94.75},
    "dsr": {0.1: 93.59, 0.2: 94.40, 0.3: 94.57, 0.4: 94.66, 0.5: 94.73},
    "sparse_evolution": {0.1: 93.28, 0.2: 94.25, 0.3: 94.40, 0.4: 94.55, 0.5: 94.76},
  },
}


def accuracy(
  dataset: str, model: str, method: str, density: float
) -> tuple[float | None, str]:
  """Looks up a published test accuracy.

  Args:
    dataset: a name in `data.NAMES`.
    model: the model's name, from `model_name`.
    method: a name in `METHODS`.
    density: live weights / weights.

  Returns:
    The accuracy in percent and its source, or None and an empty string.

  Example:
    >>> accuracy("mnist", "lenet300", "dsr", 0.05)[0]
    98.32
  """
  value = _ACCURACY.get((dataset, model), {}).get(method, {}).get(density)
  if value is None:
    return None, ""
  if method == "snip":
    name = {"lenet300": "lenet300-100"}.get(model, model)
    return value, _SNIP.format(_COMPRESSION.format(name))
  return value, _SOURCE.format(_FIGURES[dataset, model])
