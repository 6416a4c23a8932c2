"""Prunes a network for digits by OBD, with and without retraining, as in the paper.

  python -m scripts.reproduce.second_order.digits

The network is that of the paper, LeNet-1: 2,578 free parameters in 98,442 connections,
tanh units and the squared error on targets of -1 and 1. It is trained on 9,300 images
of MNIST and tested on its 10,000 test images; the paper has about 9,300 and 3,350
digits of another collection. Deleted are parameters of all kinds, biases too.

Without retraining, saliencies are computed once, and more and more parameters are
deleted. With retraining, a tenth of the parameters is deleted per round, saliencies are
computed anew in each round, and the network is trained further. The rows are merged
into results/second_order.json. Takes a quarter of an hour of one idle CPU core.
"""

import collections

import jax
import jax.numpy as jnp
from absl import flags

from scripts import ROOT
from scripts.reproduce import mnist_mlp, plots
from scripts.reproduce.second_order.lenet1 import FREE, LEARNING_RATE, LIVE, one_network
from sparsejax.analysis import COLORS
from sparsejax.experiments import command_line, results

_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
_PLOTS = flags.DEFINE_string("plots", "plots", "Folder of the figure.")
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/second_order.json"), "The results file to write."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Networks to train.")
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Epochs before the first deletion.")
_RETRAIN_EPOCHS = flags.DEFINE_integer("retrain_epochs", 10, "Epochs after each one.")

IMAGES = 9_300


def plot(table: list[dict]) -> None:
  """Draws the mean squared error over the parameters left, as figures 1 and 2."""
  found = {(row["case"], row["metric"]): row for row in table}
  figure, axes = plots.axes(1, 3, width=4.0, height=3.6)

  def line(axis, name, metric, label, color, style):
    dense = found["lenet1/dense", metric.replace("predicted", "train")]
    rows = [found[f"lenet1/parameters={live}/{name}", metric] for live in LIVE]
    means = [dense["mean"], *(row["mean"] for row in rows)]
    sems = [dense["sem"] or 0, *(row["sem"] or 0 for row in rows)]
    axis.errorbar(
      [FREE, *LIVE], means, sems, fmt=style, ms=4, capsize=2, color=color, label=label
    )

  obd, magnitude = COLORS[0], COLORS[3]
  line(axes[0], "magnitude", "train_mse_decibels", "magnitude", magnitude, "o-")
  line(axes[0], "obd", "train_mse_decibels", "OBD", obd, "o-")
  line(axes[0], "obd", "predicted_mse_decibels", "OBD, predicted", obd, ":")
  axes[0].set_title("Without retraining, training images")
  for axis, split, metric in (
    (axes[1], "training", "train_mse_decibels"),
    (axes[2], "test", "test_mse_decibels"),
  ):
    line(axis, "obd", metric, "OBD, not retrained", obd, "o:")
    line(axis, "magnitude/retrained", metric, "magnitude, retrained", magnitude, "o-")
    line(axis, "obd/retrained", metric, "OBD, retrained", obd, "o-")
    axis.set_title(f"Retrained, {split} images")
  for axis in axes:
    axis.set(xlabel="parameters", ylabel="mean squared error, dB")
    axis.legend()
  plots.save(figure, _PLOTS.value, "obd")


def main(argv: list[str]) -> None:
  del argv
  train_set, test_set = (
    (
      jnp.asarray(2 * images - 1).reshape(-1, 28, 28),
      2 * jax.nn.one_hot(labels, 10) - 1,
    )
    for images, labels in mnist_mlp.mnist(_DATA_DIR.value, train=IMAGES)
  )
  found = collections.defaultdict(list)
  for seed in range(_SEEDS.value):
    network = one_network(
      seed, train_set, test_set, _EPOCHS.value, _RETRAIN_EPOCHS.value
    )
    for key, value in network.items():
      found[key].append(value)
  note = (
    f"LeNet-1, {IMAGES:,} MNIST images, {_EPOCHS.value} epochs of Adam at"
    f" {LEARNING_RATE:g}, {_RETRAIN_EPOCHS.value} after each deletion where retrained;"
    " parameters of all kinds"
  )
  rows = [
    results.row(case, metric, values, note=note)
    for (case, metric), values in found.items()
  ]
  table = results.merge_with_existing(rows, _OUT.value)
  results.write_results(_OUT.value, "second_order", table)
  plot(rows)
  print(f"Wrote {_OUT.value}.")


if __name__ == "__main__":
  command_line.run(main)
