"""Measures SGD steps to interpolation, on both sides of the critical batch size.

  python -m scripts.reproduce.interpolation_sgd --data_dir=... --out=plots

Takes under a minute on two CPU cores. Expect steps times batch size nearly constant up
to the critical batch size m* = 7, steps nearly constant far beyond it, and all below
the bound.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from threadpoolctl import threadpool_limits

from scripts.reproduce import mnist_mlp, plots
from sparsejax.analysis import COLORS, FAINT
from sparsejax.experiments import command_line, results
from sparsejax.theory import (
  critical_batch_size,
  gaussian_kernel,
  iterations_bound,
  kernel_spectrum,
  optimal_step_size,
  simulate,
  spectrum,
)

DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
OUT = flags.DEFINE_string("out", "plots", "Folder of the plot.")
RESULTS = flags.DEFINE_string(
  "results", "results/interpolation_sgd.json", "The results file."
)
QUICK = flags.DEFINE_bool("quick", False, "Fewer runs, without the kernel of MNIST.")

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 400)
ACCURACY = 1e-6
SOURCE = "Ma, Bassily and Belkin (2018), Theorems 2 and 4"


def main(_):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(400, 10)) * np.sqrt(np.linspace(1, 0.12, 10))[None]
  inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
  s = spectrum(inputs)
  critical = critical_batch_size(s)
  print(
    f"beta {s.beta:.3f}, lambda {s.largest:.4f} to {s.smallest:.4f}, m* {critical:.2f}"
  )
  rows = [results.row("synthetic", "critical_batch_size", critical)]
  runs = 20 if QUICK.value else 200
  steps, bounds = [], []
  # Count the steps at each batch size, with its optimal step size, until the mean
  # distance is below the required one; the bound must not be exceeded.
  for batch in BATCHES:
    bounds.append(iterations_bound(s, batch, ACCURACY))
    with jax.enable_x64(True):
      distance = simulate(
        jnp.asarray(inputs),
        batch,
        optimal_step_size(s, batch),
        bounds[-1],
        jax.random.key(batch),
        runs=runs,
      )
      mean = np.asarray(jnp.mean(distance, 0))
    steps.append(int(np.argmax(mean <= ACCURACY)) + 1)
    if mean.min() > ACCURACY:
      raise RuntimeError(
        f"batch {batch} did not converge within its bound {bounds[-1]}"
      )
    print(f"batch {batch}: {steps[-1]} steps, bound {bounds[-1]}", flush=True)
    case = f"synthetic/batch={batch}"
    note = f"until the mean of |w - w*|^2 over {runs} runs is 1e-6 of its start"
    rows += [
      results.row(case, "steps", steps[-1], note=note),
      results.row(case, "steps_bound", bounds[-1], source=SOURCE),
      results.row(case, "step_size", optimal_step_size(s, batch)),
    ]
  if not QUICK.value:
    # Add the critical batch size of a Gaussian kernel on MNIST.
    (x, _), _ = mnist_mlp.mnist(DATA_DIR.value, train=1000)
    with threadpool_limits(1):
      kernel = kernel_spectrum(gaussian_kernel(x, x))
    rows.append(
      results.row(
        "mnist/n=1000/gaussian_kernel",
        "critical_batch_size",
        critical_batch_size(kernel),
        note="sigma = 5, first 1,000 training images",
      )
    )
    print(f"MNIST kernel: m* {critical_batch_size(kernel):.2f}")
    results.write_results(RESULTS.value, "interpolation_sgd", rows)
  plot(steps, bounds, critical)


def plot(steps, bounds, critical):
  figure, axis = plots.axes(1, 1, width=6.4, height=4.2)
  batches = np.array(BATCHES)
  axis.plot(batches, bounds, "--", color=FAINT, label="bound, at the best step")
  axis.plot(batches, steps, "o-", color=COLORS[0], label="steps taken")
  axis.plot(batches, steps[0] / batches, ":", color=COLORS[1], label="linear speed-up")
  axis.axvline(critical, color=COLORS[2], lw=1)
  axis.annotate(
    f"critical batch size m* = {critical:.1f}",
    (critical, max(bounds)),
    xytext=(6, -4),
    textcoords="offset points",
    color=COLORS[2],
  )
  axis.set(xscale="log", yscale="log", xlabel="batch size m")
  axis.set_ylabel("steps to 10⁻⁶ of the squared distance")
  axis.set_ylim(min(steps) * 0.5, max(bounds) * 1.5)
  axis.set_xticks(batches, [str(b) for b in batches])
  axis.set_xticks([], minor=True)
  axis.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
  axis.set_yticks([], minor=True)
  axis.set_title("Batches pay up to m*, and hardly beyond")
  axis.legend(loc="upper right", bbox_to_anchor=(1, 0.88))
  plots.save(figure, OUT.value, "interpolation_sgd")


if __name__ == "__main__":
  command_line.run(main)
