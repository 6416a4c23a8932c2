"""Prunes the byte transformer in one shot, and measures its perplexity.

  python -m scripts.reproduce.pretrained.language_model --workdir=runs/perplexity

Trains configs/lm_transformer.py dense with three seeds, ten minutes each on one CPU
core, and prunes each network by every method with 512 windows of its training text. The
perplexity is that per byte, `exp(nats per byte)`, of the test text. The rows are added
to results/pretrained.json. Finished runs are not repeated, and a stopped run resumes.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from scripts import ROOT
from scripts.reproduce.pretrained.cases import DENSITIES, METHODS
from sparsejax import post_training, training
from sparsejax.experiments import command_line, results
from sparsejax.training import data

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
_OUT = flags.DEFINE_string(
  "out", str(ROOT / "results/pretrained.json"), "The results file to write."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Networks to train.", lower_bound=1)
_WINDOWS = flags.DEFINE_integer(
  "windows", 512, "Windows of 64 bytes for calibration.", lower_bound=1
)
BATCH = 64


def make_perplexity(
  apply_fn: Callable[..., jax.Array], tokens: jax.Array, labels: jax.Array
) -> Callable[[Any], float]:
  """Returns `params -> exp(mean cross-entropy per byte, in nats)`, compiled once."""

  @jax.jit
  def total(params, tokens, labels):
    logits = apply_fn(params, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

  def perplexity(params):
    parts = [slice(i, i + BATCH) for i in range(0, len(tokens), BATCH)]
    sums = [float(total(params, tokens[part], labels[part])) for part in parts]
    return float(np.exp(sum(sums) / labels.size))

  return perplexity


def measure(workdir: pathlib.Path, seed: int) -> dict[str, float]:
  """Returns the perplexity of one network, dense and pruned by every method."""
  run = training.load_run(workdir)
  text = data.load("text")
  apply_fn = lambda params, tokens: run.apply(params, run.model_state, tokens)
  score = make_perplexity(
    apply_fn, run.normalize(text.test.images), jnp.asarray(text.test.labels)
  )
  # Each network is calibrated with other windows of the training text.
  rows = np.random.default_rng(seed).permutation(len(text.train.images))
  chosen = run.normalize(text.train.images[rows[: _WINDOWS.value]])
  batches = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
  found = {"dense": score(run.params)}
  print(f"seed {seed}, dense: {found['dense']:.3f}", flush=True)
  for name, (density, structure) in DENSITIES.items():
    for method in METHODS:
      pruned = post_training.prune(
        apply_fn,
        run.params,
        batches,
        density,
        method,
        structure,
        where="kernel$",
        targets="dense" if method == "sparse_gpt" else "layer",
        measure=False,
      )
      found[f"{name}/{method}"] = score(pruned.params)
      print(
        f"seed {seed}, {name}, {method}: {found[f'{name}/{method}']:.3f}", flush=True
      )
  return found


def main(_):
  folders, found = [], []
  for seed in range(_SEEDS.value):
    config = command_line.load_config(ROOT / "configs/lm_transformer.py", "dense")
    config.seed = seed
    folder = pathlib.Path(_WORKDIR.value) / f"seed={seed}"
    if not training.train_and_evaluate(config, folder, summarize=False).finished:
      sys.exit(130)
    folders.append(folder)
    found.append(measure(folder, seed))
  rows = [
    results.row(
      f"byte_transformer/{case}",
      "perplexity_per_byte",
      [one[case] for one in found],
      note=f"{_WINDOWS.value} windows of 64 bytes",
      runs=results.trained_in(folders),
    )
    for case in found[0]
  ]
  results.write_results(
    _OUT.value, "pretrained", results.merge_with_existing(rows, _OUT.value)
  )


if __name__ == "__main__":
  command_line.run(main)
