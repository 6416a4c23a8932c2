"""Prunes LeNet-300-100 on MNIST in one shot, without retraining."""

import collections
import time

import jax
import jax.numpy as jnp
import numpy as np

from scripts.reproduce import mnist_mlp
from sparsejax.experiments import results
from sparsejax.scores import mlp_gauss_newton_diagonal, obd_saliency
from sparsejax.second_order import (
  compensate,
  keep_best,
  prepare_mlp_obs,
  prune_mlp_obs,
  sparse_gpt,
  with_kernel,
)

SIZES = (784, 300, 100, 10)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
SAMPLES = 20_000  # training images that curvatures and losses are taken on
NOTE = (
  "one-shot, no retraining, kernels only; compensation takes the biases along; "
  "dense net of 4,000 Adam steps"
)


def lenet(train, test, seeds: int, steps: int, samples: int = SAMPLES):
  """Returns rows of results, and predicted and actual rises of the loss, by method."""
  found = collections.defaultdict(list)
  points = collections.defaultdict(list)
  for seed in range(seeds):
    started = time.time()
    params = mnist_mlp.train_mlp(SIZES, train[0], train[1], seed, steps)
    # Programs that call LAPACK must not run concurrently on few cores: wait for each.
    jax.block_until_ready(params)
    one_net(params, train[0][:samples], train[1][:samples], test, found, points)
    print(f"lenet300 seed {seed}: {time.time() - started:.0f} s", flush=True)
  rows = [
    results.row(case, "test_error_percent", values, note=NOTE)
    for case, values in found.items()
  ]
  for case, values in found.items():
    print(f"  {case}: {np.mean(values):.2f}", flush=True)
  return rows, points


def one_net(params, x, y, test, found, points):
  def error(pruned):
    return float(mnist_mlp.error_percent(pruned, *test))

  loss = jax.jit(mnist_mlp.cross_entropy)
  dense_loss = float(loss(params, x, y))
  found["lenet300/dense"].append(error(params))
  # Prepare what all densities share: scores, and the Hessians of layer-wise OBS.
  kernels = {name: layer["kernel"] for name, layer in params.items()}
  every = jax.tree.map(lambda k: jnp.ones(k.shape, bool), kernels)
  total = sum(k.size for k in kernels.values())
  diagonal = jax.jit(mlp_gauss_newton_diagonal)(params, x)
  saliency = obd_saliency(kernels, {n: d["kernel"] for n, d in diagonal.items()})
  prepared = jax.block_until_ready(jax.jit(prepare_mlp_obs)(params, x))
  scores = {"magnitude": jax.tree.map(jnp.abs, kernels), "obd": saliency}
  best = jax.jit(keep_best)
  prune = jax.jit(prune_mlp_obs, static_argnames="uniform")

  for density in DENSITIES:
    live = round(density * total)
    case = f"lenet300/kept={density:g}/"
    # Prune by scores, over all layers together and with uniform densities.
    for name, score in scores.items():
      masks = {
        "": best(score, every, live),
        "/uniform": {
          n: best(score[n], every[n], round(density * kernels[n].size)) for n in kernels
        },
      }
      for suffix, mask in masks.items():
        pruned = cut(params, mask)
        found[case + name + suffix].append(error(pruned))
        if name == "obd" and not suffix:
          gone = [jnp.sum(jnp.where(mask[n], 0, saliency[n])) for n in kernels]
          actual = float(loss(pruned, x, y)) - dense_loss
          points["obd"].append((float(sum(gone)), actual))
    # Layer-wise OBS, and SparseGPT, which compensate for the removed weights.
    for suffix in ("", "/uniform"):
      pruned = prune(params, prepared, live, uniform=bool(suffix))
      found[case + "layerwise_obs" + suffix].append(error(pruned.params))
      if not suffix:
        actual = float(loss(pruned.params, x, y)) - dense_loss
        points["layerwise_obs"].append((float(pruned.predicted), actual))
        # Separate the effect of the choice of weights from that of compensation.
        masks = {n: pruned.masks[n]["kernel"] for n in kernels}
        found[case + "layerwise_obs_mask_only"].append(error(cut(params, masks)))
    compensated = refit(params, best(saliency, every, live), prepared)
    found[case + "obd_mask_compensated"].append(error(compensated))
    found[case + "sparse_gpt/uniform"].append(error(gpt(params, prepared, density)))


def cut(params, masks):
  return {
    n: {**layer, "kernel": jnp.where(masks[n], layer["kernel"], 0)}
    for n, layer in params.items()
  }


@jax.jit
def refit(params, masks, prepared):
  kernels = [
    compensate(params[n]["kernel"].T, h, masks[n].T).T
    for n, h in zip(sorted(params), prepared.hessians, strict=True)
  ]
  return with_kernels(params, kernels, prepared)


def gpt(params, prepared, density):
  run, kernels = jax.jit(sparse_gpt, static_argnums=2), []
  for name, hessian in zip(sorted(params), prepared.hessians, strict=True):
    weights = params[name]["kernel"].T
    kernels.append(jax.block_until_ready(run(weights, hessian, density)).weights.T)
  return with_kernels(params, kernels, prepared)


def with_kernels(params, kernels, prepared):
  return {
    name: with_kernel(params[name], kernel, mean)
    for name, kernel, mean in zip(sorted(params), kernels, prepared.means, strict=True)
  }
