# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Compose your own sparse optimizer
#
# A sparse-training method answers four questions: which weights are dropped, where the
# freed budget goes, which weights grow, and when. Each answer is a small pure function,
# and a method is a choice of them. Here is one that no paper has, in three lines, next
# to SET and RigL, on scikit-learn's 8 x 8 digits with one weight in twenty.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/1_compose_your_own.ipynb)

# %%
# Where sparsejax is not installed, as in Colab, install it.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("sparsejax") is None:
  source = "sparsejax[train] @ git+https://github.com/sparsejax/sparsejax"
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
STEPS, SEEDS = (600, 2) if QUICK else (2000, 8)
EVERY, DENSITY = 20, 0.05

digits = data.load("digits")
to_floats = lambda split: (jnp.float32(split.images) / 16, jnp.asarray(split.labels))
train, test = to_floats(digits.train), to_floats(digits.test)
model = models.MLP(features=(128, 128), initialization=models.lecun_normal)

# %% [markdown]
# ## Three methods as choices
#
# `chain` runs mask transforms in order; `sparsify` puts the result around any optax
# optimizer. RigL drops the smallest weights and grows those of the largest gradient;
# SET grows at random.
#
# Our method drops by *influence*, $|w\,\partial L/\partial w|$, the first-order change
# of the loss if the weight were removed, and lets layers compete for the freed budget.
# A score is any function of `inputs`, which has `params`, `grads`, `moments`, `masks`,
# `key`, `step`.


# %%
def influence(inputs):
  return jax.tree.map(lambda w, g: jnp.abs(w * g), inputs.params, inputs.grads)


fraction = optax.cosine_decay_schedule(0.3, STEPS)
METHODS = {
  "static": None,
  "SET": sj.chain(sj.drop(sj.magnitude, fraction), sj.grow(sj.random)),
  "RigL": sj.chain(sj.drop(sj.magnitude, fraction), sj.grow(sj.gradient)),
  "ours": sj.chain(
    sj.drop(influence, fraction),
    sj.redistribute(sj.momentum),
    sj.grow(sj.momentum),
  ),
}


def optimizer(change, seed):
  inner = optax.sgd(0.1, momentum=0.9, nesterov=True)
  if change is None:
    return sj.static_sparse(inner, DENSITY, seed=seed)
  when = {"update_every": EVERY, "end_step": 3 * STEPS // 4}
  return sj.sparsify(inner, change, DENSITY, seed=seed, **when)


# %% [markdown]
# ## The loop is yours
#
# It contains nothing about sparsity: gradients, `tx.update`, `apply_updates`. Here it
# is one `lax.scan`, compiled once per method; the seed of the masks and all counts may
# be traced.


# %%
def loss(params, images, labels):
  logits = model.apply({"params": params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(params):
  logits = model.apply({"params": params}, test[0])
  return jnp.mean((logits.argmax(-1) == test[1]).astype(jnp.float32))


def trainer(change):
  @jax.jit
  def run(seed):
    tx = optimizer(change, seed)
    params = model.init(jax.random.key(seed), train[0][:1])["params"]
    params, opt_state = sj.init(tx, params)
    # Sparse layers start with the variance of dense ones.
    params = sj.rescale(params, sj.masks(opt_state))

    def step(carry, key):
      params, opt_state = carry
      rows = jax.random.randint(key, (64,), 0, len(train[1]))
      grads = jax.grad(loss)(params, train[0][rows], train[1][rows])
      updates, opt_state = tx.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      return (params, opt_state), accuracy(params)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), STEPS)
    return jax.lax.scan(step, (params, opt_state), keys)

  return run


results = {}
for name, change in METHODS.items():
  run = trainer(change)
  results[name] = [run(seed) for seed in range(SEEDS)]

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, seeds in results.items():
  curves = 100 * np.array([curve for _, curve in seeds])
  smooth = np.convolve(curves.mean(0), np.ones(20) / 20, mode="valid")
  label = f"{name}: {curves[:, -100:].mean():.1f} %"
  axes.plot(np.arange(len(smooth)) + 19, smooth, label=label)
axes.set(xlabel="step", ylabel="test accuracy, %", ylim=(70, 100))
axes.set_title(f"Digits, {DENSITY:.0%} of the weights, {SEEDS} seeds", loc="left")
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## What `sparsify` promises, whatever the choice
#
# Masked weights are exactly zero after every step; the live weights of each layer equal
# its budget; and redistribution keeps the sum of the budgets.

# %%
for name, seeds in results.items():
  for (params, opt_state), _ in seeds:
    masks = sj.masks(opt_state)
    live = {layer: int(mask["kernel"].sum()) for layer, mask in masks.items()}
    for layer, mask in masks.items():
      assert not jnp.any(jnp.where(mask["kernel"], 0, params[layer]["kernel"]))
  print(f"{name:7}", live, "sum", sum(live.values()))

# %% [markdown]
# A method worth keeping is a file in `sparsejax/methods/` and a row in the contract
# table: `docs/adding_a_method.md`.
