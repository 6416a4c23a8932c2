"""Activations of trained networks by class, and their plot."""

import pathlib
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import ticker

from sparsejax.analysis import (
  COLORS,
  DISPLAY_NAMES,
  class_contributions,
  new_figure,
  style_axes,
)
from sparsejax.core import read_archive, write_archive
from sparsejax.models import Conv
from sparsejax.training import LoadedRun, data

FILE = "class_contributions.npz"
BATCH = 1000


def write(workdir: pathlib.Path, run: LoadedRun) -> None:
  """Sums each hidden layer's activations by channel and class, over training images.

  Activations are measured after ReLU and before pooling, as in the authors' code.
  """

  @jax.jit
  def activations(params, images):
    _, kept = run.model.apply(
      {"params": params},
      images,
      capture_intermediates=lambda module, _: isinstance(module, Conv | nn.Dense),
    )
    layers = {name: nn.relu(x["__call__"][0]) for name, x in _layers(kept)}
    over = lambda x: tuple(range(1, x.ndim - 1))
    return {name: jnp.sum(x, over(x)) for name, x in layers.items()}

  dataset = _dataset(run)
  total: dict[str, np.ndarray] = {}
  for start in range(0, len(dataset.train.labels), BATCH):
    part = slice(start, start + BATCH)
    images = run.normalize(dataset.train.images[part])
    labels = dataset.train.labels[part]
    for name, sums in activations(run.params, images).items():
      counts = class_contributions(np.asarray(sums), labels, dataset.num_classes)
      total[name] = total.get(name, 0) + counts
  write_archive(workdir / FILE, {n: total[n] for n in list(total)[:-1]})


def read(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the file of `write`: float64 (channels, classes) by layer, in order."""
  return read_archive(workdir / FILE, "class_specialization")


def first_images(run: LoadedRun, count: int) -> jax.Array:
  """Returns the first test images, normalized as in the run's training."""
  return run.normalize(_dataset(run).test.images[:count])


def _layers(kept) -> Iterator[tuple[str, Mapping]]:
  yield from kept["intermediates"].items()


def _dataset(run: LoadedRun) -> data.Dataset:
  c = run.config
  return data.load(c.dataset, c.data_dir, c.validation_fraction)


def plot(
  found: Mapping[tuple[str, float], Mapping[str, np.ndarray]], out: pathlib.Path
) -> None:
  """Plots histograms of the largest class share by layer, and means by density.

  Args:
    found: shares of channels by `(model, density)`, then layer.
    out: path of the plot.
  """
  models = list(dict.fromkeys(model for model, _ in found))
  depth = max(len(layers) for layers in found.values())
  size = 3.4 * (depth + 1), 2.9 * len(models)
  fig, panels = new_figure(len(models), depth + 1, size, squeeze=False)
  for row, model in zip(panels, models, strict=True):
    nets = {d: layers for (name, d), layers in found.items() if name == model}
    names = list(next(iter(nets.values())))
    for axes, layer in zip(row, names, strict=False):
      bins = np.linspace(0.1, max(n[layer].max() for n in nets.values()), 31)
      for (density, layers), color in zip(nets.items(), COLORS, strict=False):
        label = "dense" if density == 1 else f"{density:.0%} of the weights"
        axes.hist(
          layers[layer], bins, density=True, histtype="step", lw=1.8, color=color,
          label=label,
        )  # fmt: skip
      axes.set_title(f"{DISPLAY_NAMES[model]}, {layer}")
      axes.set_xlabel("share of its best class")
      axes.set_yticks([])
    row[0].legend(fontsize=8.5)
    for axes in row[len(names) : -1]:
      axes.set_visible(False)
    densities = sorted(nets)
    for layer, color in zip(names, COLORS[3:], strict=False):
      mean = [nets[d][layer].mean() for d in densities]
      row[-1].plot(densities, mean, "o-", ms=4, lw=1.8, color=color, label=layer)
    row[-1].set_xscale("log")
    row[-1].xaxis.set_major_locator(ticker.FixedLocator(densities))
    row[-1].xaxis.set_minor_locator(ticker.NullLocator())
    row[-1].xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:.0%}"))
    row[-1].legend(fontsize=8.5)
    row[-1].set_xlabel("weights kept")
    row[-1].set_title("Mean over channels")
    for axes in row:
      style_axes(axes, labelsize=8.5)
  out.parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(out, dpi=120)
