"""Prunes MiniLM-L6 in one shot by every method, and fine-tunes the result.

  python -m scripts.reproduce.pretrained --model=model.zip

The model is that of `examples/prune_pretrained.py`. Takes an hour on two CPU cores,
most of it for fine-tuning. At density 0.5, 0.3 and 2:4, expect the cosine to the dense
embeddings to be highest for SparseGPT, then Wanda, then magnitude: about 0.97 for
SparseGPT at 0.5; and 0.94, 0.72 and 0.59 at 2:4. Each case is written when it is
finished, and another run of the script only adds the missing cases.
"""

import time

import jax
import numpy as np
from absl import flags

from examples import prune_pretrained as example
from scripts.reproduce.pretrained.cases import DENSITIES, METHODS
from sparsejax import post_training
from sparsejax.experiments import command_line, results

MODEL = flags.DEFINE_string("model", None, "Directory or zip file of the model.")
RESULTS = flags.DEFINE_string("results", "results/pretrained.json", "The results file.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of sets of calibration text.")
SENTENCES = flags.DEFINE_integer(
  "sentences", 1024, "Sentences per set of calibration text."
)
STEPS = flags.DEFINE_integer("steps", 400, "Steps of fine-tuning.")
TUNED = flags.DEFINE_multi_enum(
  "fine_tune", list(DENSITIES), list(DENSITIES), "Networks to fine-tune."
)


def main(_):
  model, params, tokenizer = example.load(MODEL.value)
  apply_fn = jax.jit(lambda params, inputs: model.apply({"params": params}, *inputs))
  test = example.encode(tokenizer, example.sentences()[0])
  dense = np.asarray(apply_fn(params, test))
  embed = lambda params: np.asarray(apply_fn(params, test))
  done = _done()

  def prune(seed, density, method, structure, **kwargs):
    rest = example.sentences(seed)[1]
    batches = example.calibration(tokenizer, rest[: SENTENCES.value])
    return post_training.prune(
      apply_fn,
      params,
      batches,
      density,
      method,
      structure,
      where=example.LAYERS,
      **kwargs,
    )

  # One-shot pruning by every method, then variants of SparseGPT.
  for name, (density, structure) in DENSITIES.items():
    for method in METHODS:
      case = f"minilm_l6/{name}/{method}"
      if case in done:
        continue
      targets = "dense" if method == "sparse_gpt" else "layer"
      found = []
      # Magnitude does not depend on the calibration text, so one seed is enough.
      for seed in range(1 if method == "magnitude" else SEEDS.value):
        start = time.time()
        pruned = prune(seed, density, method, structure, measure=False, targets=targets)
        seconds = time.time() - start
        found.append((*example.agreement(dense, embed(pruned.params)), seconds))
        print(case, seed, found[-1], flush=True)
      _write(case, found, f"{SENTENCES.value} sentences")
    for variant, kwargs, note in (
      ("layer_targets", {}, "each layer fitted to its own outputs"),
      ("dense_inputs", {"inputs": "dense"}, "statistics of the dense network"),
    ):
      case = f"minilm_l6/{name}/sparse_gpt/{variant}"
      if case not in done:
        pruned = prune(0, density, "sparse_gpt", structure, measure=False, **kwargs)
        found = [(*example.agreement(dense, embed(pruned.params)), None)]
        print(case, found, flush=True)
        _write(case, found, f"{SENTENCES.value} sentences, {note}")
  # Fine-tuning of SparseGPT's networks.
  for name in TUNED.value:
    density, structure = DENSITIES[name]
    case = f"minilm_l6/{name}/sparse_gpt/fine_tuned"
    if STEPS.value != STEPS.default:
      case += f"/steps={STEPS.value}"
    if case in done:
      continue
    pruned = prune(0, density, "sparse_gpt", structure, targets="dense", measure=False)
    batches = example.calibration(tokenizer, example.sentences(0)[1], 16)
    start = time.time()
    tuned = example.fine_tune(apply_fn, params, pruned, batches, STEPS.value)
    found = [(*example.agreement(dense, embed(tuned)), time.time() - start)]
    print(case, found, flush=True)
    _write(case, found, f"{STEPS.value} steps of 16 sentences, masks of seed 0")


def _done():
  return {row["case"] for row in results.read_rows(RESULTS.value)}


def _write(case, found, note):
  metrics = ("cosine_to_dense", "neighbour_agreement", "seconds")
  rows = [
    results.row(case, metric, list(values), note=note)
    for metric, values in zip(metrics, zip(*found, strict=True), strict=True)
    if None not in values
  ]
  results.write_results(
    RESULTS.value, "pretrained", results.merge_with_existing(rows, RESULTS.value)
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("model")
  command_line.run(main)
