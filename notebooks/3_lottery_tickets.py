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
# # 3. Lottery tickets on digits
#
# Frankle and Carbin (2019): train a network, prune its smallest weights, *rewind* the
# others to their initial values, and train again. Round by round this leaves a sparse
# network, the winning ticket, that learns as well as the dense one and as fast. With
# other initial weights the same mask does not.
#
# Here it takes a minute, on the 8 x 8 digits; `scripts/lottery.py` runs the whole
# experiment.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/3_lottery_tickets.ipynb)

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
from sparsejax import analysis, lottery, models
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
SEEDS, STEPS, FRACTION, ROUNDS = (2, 300, 0.5, 5) if QUICK else (5, 1000, 0.2, 16)

digits = data.load("digits")
to_floats = lambda split: (jnp.float32(split.images) / 16, jnp.asarray(split.labels))
train, validation, test = map(to_floats, digits[:3])
model = models.MLP(features=(100, 50), initialization=models.glorot_normal)
tx = sj.static_sparse(optax.adam(2e-3), density=1.0)

# %% [markdown]
# ## A population
#
# `train_population` takes any loss and any optimizer of this package. Its members
# differ in weights, masks and data order; one compiled program trains all, side by side
# on an accelerator. Early stopping, the step of the least validation loss, is recorded
# for each.


# %%
def cross_entropy(params, images, labels):
  logits = model.apply({"params": params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss(params, state, batch, key):
  return cross_entropy(params, *batch), state


def validate(params, state, held_out):
  return cross_entropy(params, *held_out[0])


def accuracy(params, state, held_out):
  logits = model.apply({"params": params}, held_out[1][0])
  return 100 * jnp.mean((logits.argmax(-1) == held_out[1][1]).astype(jnp.float32))


init = jax.jit(lambda key: model.init(key, train[0][:1])["params"])
stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
member = lambda tree, i: jax.tree.map(lambda x: x[i], tree)


def fit(params, masks, seeds):
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  return lottery.train_population(
    loss,
    tx,
    lottery.stack_members(tx, keys, stack(params), stack(masks)),
    train,
    batch_size=32,
    steps=STEPS,
    validate=validate,
    every=20,
    measure=accuracy,
    held_out=(validation, test),
  )


# %% [markdown]
# ## Rounds of pruning
#
# A round prunes a fraction of each layer's live weights, and half that fraction of the
# output layer. Two controls are trained beside every ticket: its mask with new initial
# weights, and random masks with as many weights per layer.

# %%
initial = [init(jax.random.key(seed)) for seed in range(SEEDS)]
masks = [lottery.dense_masks(params) for params in initial]
levels = []
for round_ in range(ROUNDS + 1):
  kinds = {"ticket": (initial, masks)}
  if round_:
    fresh = [
      lottery.mask_one("reinit", p, m, jax.random.key(100 + i), fresh=init)
      for i, (p, m) in enumerate(zip(initial, masks, strict=True))
    ]
    other = [
      lottery.random_masks(m, jax.random.key(200 + i)) for i, m in enumerate(masks)
    ]
    kinds |= {"reinit": (fresh, masks), "random": (initial, other)}
  params = [p for ps, _ in kinds.values() for p in ps]
  all_masks = [m for _, ms in kinds.values() for m in ms]
  done = fit(params, all_masks, list(range(SEEDS)) * len(kinds))
  live = sum(int(m.sum()) for m in jax.tree.leaves(masks[0]))
  size = sum(m.size for m in jax.tree.leaves(masks[0]))
  shape = (len(kinds), SEEDS)
  levels.append(
    {
      "weights": 100 * live / size,
      "accuracy": dict(zip(kinds, done.at_early_stop.reshape(shape), strict=True)),
      "curve": dict(zip(kinds, done.validation_loss.reshape(*shape, -1), strict=True)),
      "steps": done.steps,
    }
  )
  mean = {kind: f"{a.mean():.1f} %" for kind, a in levels[-1]["accuracy"].items()}
  print(f"{levels[-1]['weights']:5.1f} % of the weights: {mean}")
  if round_ < ROUNDS:
    trained = [member(done.members.params, i) for i in range(SEEDS)]
    masks = [
      lottery.prune(p, m, FRACTION, rates={"dense3": FRACTION / 2})
      for p, m in zip(trained, masks, strict=True)
    ]

# %% [markdown]
# ## Accuracy and speed
#
# Left: mean and range over seeds, measured at the step of early stopping. The digits
# are easy, so the gap opens where few weights are left. Right: the networks of the last
# round during training, beside the dense one. The ticket learns faster than its
# controls.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
colors = {"ticket": "C0", "reinit": "C1", "random": "C2"}
for kind, color in colors.items():
  chosen = [level for level in levels if kind in level["accuracy"]]
  x = [level["weights"] for level in chosen]
  values = np.array([level["accuracy"][kind] for level in chosen])
  left.plot(x, values.mean(1), "o-", ms=4, label=kind, color=color)
  left.fill_between(x, values.min(1), values.max(1), alpha=0.15, lw=0, color=color)
  curve = levels[-1]["curve"][kind].mean(0)
  right.plot(levels[-1]["steps"], curve, label=kind, color=color)
dense = levels[0]["curve"]["ticket"].mean(0)
right.plot(levels[0]["steps"], dense, "--", color="0.4", label="dense")
left.set(xscale="log", xlabel="weights remaining, %", ylabel="test accuracy, %")
left.set_title("At early stop", loc="left")
left.invert_xaxis()
left.set_xticks([100, 50, 20, 10, 5], ["100", "50", "20", "10", "5"])
left.minorticks_off()
left.legend(frameon=False)
right.set(xlabel="step", ylabel="validation loss", ylim=(0, 2.9))
right.set_title(f"{levels[-1]['weights']:.1f} % of the weights", loc="left")
right.legend(frameon=False, ncols=4, loc="upper center", fontsize=8)
plt.show()

# %% [markdown]
# ## The input pixels of a ticket
#
# The connected input pixels after all rounds.

# %%
figure, panels = plt.subplots(1, SEEDS + 1, figsize=(2.2 * SEEDS + 2.2, 2.5))
panels[0].imshow(np.asarray(train[0]).mean(0)[..., 0], cmap="gray")
panels[0].set_title("mean digit", fontsize=9)
for panel, mask in zip(panels[1:], masks, strict=True):
  seen = analysis.input_connectivity(mask["dense1"]["kernel"], (8, 8))
  panel.imshow(seen, cmap="magma")
for seed, panel in enumerate(panels[1:]):
  panel.set_title(f"ticket, seed {seed}", fontsize=9)
for panel in panels:
  panel.set_axis_off()
plt.show()
shared, chance = analysis.overlap(masks[0], masks[1])["all"]
print(f"shared by the tickets of two seeds: {shared:.1%}, by chance {chance:.1%}")
