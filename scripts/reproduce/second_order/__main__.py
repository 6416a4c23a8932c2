"""Runs OBD, OBS and layer-wise OBS on XOR, the MONK's problems and LeNet-300-100.

  python -m scripts.reproduce.second_order --data_dir=... --out=plots

LeNet-300-100 is pruned in one shot. Takes eight CPU minutes. Expect XOR to be solved by
100 of 100 nets after an OBS deletion and by fewer than 20 after a plain one; 10, 15 and
4 weights left on MONK 1-3 (as few by magnitude, because every deletion is followed by
retraining); and for LeNet-300-100 with 5 % kept: 3.5 % error with layer-wise OBS, 19 %
with OBD, 32 % with magnitude.

The training rows of the MONK's problems are drawn by their rules. --monk_dir names a
folder with the published ones, monks-1.train to monks-3.train of the UCI repository;
then nothing else is run, and the other rows of the results file are left unchanged.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from scripts.reproduce import mnist_mlp, plots
from scripts.reproduce.second_order import one_shot, small_nets
from sparsejax.analysis import COLORS, FAINT
from sparsejax.experiments import command_line, results

DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
OUT = flags.DEFINE_string("out", "plots", "Folder of the plot.")
RESULTS = flags.DEFINE_string(
  "results", "results/second_order.json", "The results file."
)
MONK_DIR = flags.DEFINE_string("monk_dir", "", "Folder of the published training rows.")
QUICK = flags.DEFINE_bool(
  "quick", False, "Few networks, one MONK's problem, a short training."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of LeNet-300-100.")


def main(_):
  if MONK_DIR.value:
    folder = pathlib.Path(MONK_DIR.value)
    with jax.enable_x64(True):
      rows = [r for k in (1, 2, 3) for r in small_nets.monk_as_published(k, folder)]
    whole = results.merge_with_existing(rows, RESULTS.value)
    results.write_results(RESULTS.value, "second_order", whole)
    return
  with jax.enable_x64(True):
    rows, points = small_nets.xor(10 if QUICK.value else 100)
    for number in (3,) if QUICK.value else (1, 2, 3):
      rows += small_nets.monk(number, draws=1 if QUICK.value else 3)
  train, test = mnist_mlp.mnist(DATA_DIR.value)
  more, net_points = one_shot.lenet(
    train,
    test,
    seeds=1 if QUICK.value else SEEDS.value,
    steps=200 if QUICK.value else 4000,
    samples=2000 if QUICK.value else one_shot.SAMPLES,
  )
  rows += more
  plot(points, net_points, rows)
  if not QUICK.value:
    whole = results.merge_with_existing(rows, RESULTS.value)
    results.write_results(RESULTS.value, "second_order", whole)


def plot(points, net_points, rows):
  figure, (left, middle, right) = plots.axes(1, 3, width=4.4, height=4.0)
  styles = {"obs": 0, "obd": 1, "layerwise_obs": 0, "magnitude": 3}
  labels = {"obs": "OBS", "obd": "OBD", "layerwise_obs": "layer-wise OBS"}
  labels["magnitude"] = "magnitude"
  for axis, data in ((left, points), (middle, net_points)):
    ends = []
    for name, pairs in data.items():
      pairs = np.stack(pairs, 1) if isinstance(pairs, tuple) else np.array(pairs)
      if not np.isfinite(pairs).all():
        continue
      color = COLORS[styles[name]]
      axis.plot(*pairs.T, "o", ms=4, alpha=0.7, color=color, label=labels[name])
      ends += [pairs.min(), pairs.max()]
    ends = [max(min(ends), 1e-7) * 0.7, max(ends) * 1.4]
    axis.plot(ends, ends, "-", color=FAINT, lw=1, label="predicted = actual")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axis.set(xlabel="predicted rise of the loss", ylabel="actual rise of the loss")
    axis.legend(loc="upper left")
  left.set_title("XOR: one weight deleted")
  middle.set_title("LeNet-300-100: 50 to 98 % deleted at once")
  table = {row["case"]: row["mean"] for row in rows}
  for name in ("magnitude", "obd", "layerwise_obs"):
    for suffix, style in (("", "o-"), ("/uniform", "o:")):
      values = [
        table[f"lenet300/kept={d:g}/{name}{suffix}"] for d in one_shot.DENSITIES
      ]
      kept = 100 * np.array(one_shot.DENSITIES)
      label = labels[name] + (", uniform layers" if suffix else "")
      color = COLORS[styles[name]]
      right.plot(kept, values, style, color=color, ms=4, label=label)
  right.axhline(table["lenet300/dense"], color=FAINT, lw=1, label="dense")
  right.set(xscale="log", yscale="log", xlabel="weights kept, %")
  right.set_ylabel("test error, %, no retraining")
  right.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
  right.set_xticks([], minor=True)
  right.set_yticks([3, 5, 10, 20, 50, 90], ["3", "5", "10", "20", "50", "90"])
  right.set_yticks([], minor=True)
  right.invert_xaxis()
  right.set_title("One-shot pruning of LeNet-300-100")
  right.set_ylim(top=700)  # room for the legend
  right.legend(loc="upper left", fontsize=8, ncols=2)
  plots.save(figure, OUT.value, "second_order")


if __name__ == "__main__":
  command_line.run(main)
