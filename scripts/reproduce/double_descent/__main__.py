"""Measures double descent on MNIST with random Fourier features and least squares.

  python -m scripts.reproduce.double_descent --data_dir=... --out=plots

Takes about 1.5 minutes on two CPU cores. The solutions have minimum norm. Expect a
first minimum near 400 features, a test error near 87 % at 1,000 features for 1,000
examples, and a tail that decreases to the error of the kernel. `--examples=10000` has
one seed and at most twice as many features; it takes 15 minutes of one core and 10 GB.
Rows of the other number of examples are left unchanged. The first 2,000 test
images of the original file are harder: away from the peak their error is 2 to 6 points
above that on all 10,000. Both are reported.
"""

import collections
import hashlib

import numpy as np
from absl import flags
from threadpoolctl import threadpool_limits

from scripts.reproduce import mnist_mlp, plots
from sparsejax.analysis import COLORS, FAINT
from sparsejax.experiments import command_line, results
from sparsejax.theory import fit_features

DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
OUT = flags.DEFINE_string("out", "plots", "Folder of the plot.")
RESULTS = flags.DEFINE_string(
  "results", "results/double_descent.json", "The results file."
)
EXAMPLES = flags.DEFINE_integer("examples", 1000, "Training images.", lower_bound=10)
QUICK = flags.DEFINE_bool("quick", False, "Use 200 examples, small widths, one seed.")

NOTE = "training rows drawn anew for each seed; all 10,000 test images"
FIRST = "on the first 2,000 test images of the original file, which are harder"


def main(_):
  examples = 200 if QUICK.value else EXAMPLES.value
  many = examples > 2000
  seeds = 1 if QUICK.value or many else 3
  widths = [int(examples * r) for r in (0.2, 0.4, 0.6, 0.8, 0.9, 1, 1.1, 1.2, 1.5)]
  last = (2,) if many else (2, 4) if QUICK.value else (2, 4, 8, 16)
  widths += [examples * r for r in last]
  train, test = mnist_mlp.mnist(DATA_DIR.value)
  if QUICK.value:
    test = test[0][:1000], test[1][:1000]
  else:
    test = original_order(*test)
  fits = collections.defaultdict(list)
  # With factorizations this small, many threads mostly wait for each other.
  with threadpool_limits(1):
    for seed in range(seeds):
      rows = np.random.default_rng(seed).choice(len(train[1]), examples, replace=False)
      subset = train[0][rows], train[1][rows]
      for width in [*widths, None]:
        fit = fit_features(subset, test, width, seed=seed)
        fits[width].append(fit)
        print(
          f"seed {seed} features {width or 'kernel'}: test error {fit.test_error:.2f},"
          f" on the first 2,000 {100 * fit.wrong[:2000].mean():.2f}, norm"
          f" {fit.norm:.1f}, training loss {fit.train_loss:.1e}",
          flush=True,
        )
  rows = []
  for width, several in fits.items():
    case = f"mnist/n={examples}/" + (f"features={width}" if width else "kernel")
    for metric, field in (
      ("test_error_percent", "test_error"),
      ("train_mean_squared_error", "train_loss"),
      ("coefficient_norm", "norm"),
    ):
      values = [getattr(fit, field) for fit in several]
      rows.append(results.row(case, metric, values, note=NOTE))
    first = [100 * float(fit.wrong[:2000].mean()) for fit in several]
    rows.append(results.row(case, "test_error_first_2000_percent", first, note=FIRST))
  plot(fits, examples)
  if not QUICK.value:
    rows = results.merge_with_existing(rows, RESULTS.value)
    results.write_results(RESULTS.value, "double_descent", rows)


def original_order(x, y):
  """Returns MNIST's test images in the original order; TFDS sorts them by hash."""
  hashes = [hashlib.md5(f"test{i}".encode()).digest() for i in range(len(y))]
  numbers = sorted(range(len(y)), key=hashes.__getitem__)
  order = np.argsort(numbers)
  if y[order][:6].tolist() != [7, 2, 1, 0, 4, 1]:
    raise RuntimeError("the test images are not in the order of TFDS's MNIST 3.0.1")
  return x[order], y[order]


def plot(fits, examples):
  figure, (top, bottom) = plots.axes(2, 1, width=6.4, height=3.1)
  widths = [w for w in fits if w]
  for axis, field, label in (
    (top, "test_error", "test error, %"),
    (bottom, "norm", "norm of the coefficients"),
  ):
    values = np.array([[getattr(f, field) for f in fits[w]] for w in widths])
    mean = values.mean(1)
    axis.plot(widths, mean, "o-", color=COLORS[0], ms=4, label="mean of seeds")
    axis.fill_between(
      widths, values.min(1), values.max(1), color=COLORS[0], alpha=0.2, lw=0
    )
    kernel = np.mean([getattr(f, field) for f in fits[None]])
    axis.axhline(kernel, color=COLORS[2], lw=1, label="Gaussian kernel, N → ∞")
    axis.axvline(examples, color=FAINT, ls=":", lw=1)
    axis.set(xscale="log", ylabel=label, xlabel="random Fourier features N")
    ticks = [int(examples * r) for r in (0.2, 0.4, 1, 2, 4, 16)]
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(min(widths) * 0.9, max(widths) * 1.1)
  bottom.set_yscale("log")
  top.annotate(
    f"N = n = {examples:,}",
    (examples, 70),
    xytext=(8, 0),
    textcoords="offset points",
    color=FAINT,
    fontsize=9,
  )
  top.set_title("Double descent: the peak is where the fit becomes exact")
  top.legend(loc="upper left")
  name = "double_descent" if examples == 1000 else f"double_descent_{examples}"
  plots.save(figure, OUT.value, name)


if __name__ == "__main__":
  command_line.run(main)
