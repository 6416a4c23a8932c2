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
# # 5. NeST: growing and pruning
#
# Dai, Yin and Jha (2017) begin with a sparse seed, *grow* what lowers the loss, then
# *prune* what does not matter. This notebook shows two of their policies on the 8 x 8
# digits:
#
# * **connections**: masked weights with the largest $|\partial L / \partial w|$ grow;
# * **neurons**: a pair of units, one layer apart, whose *bridging gradient* is large
#   gets a new neuron between them;
#
# and then magnitude pruning, round by round.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/5_nest.ipynb)

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
from sparsejax import analysis, growth, models
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
STEPS, GROWTHS, PRUNINGS = (300, 4, 4) if QUICK else (1000, 6, 8)

digits = data.load("digits")
to_floats = lambda split: (jnp.float32(split.images) / 16, jnp.asarray(split.labels))
train, test = to_floats(digits.train), to_floats(digits.test)

# %% [markdown]
# ## Capacity and seed
#
# Arrays have the size of the *capacity*, and masks select the network, so nothing is
# compiled again while it grows. The seed has two fifths of the units, sparsely
# connected.

# %%
model = models.MLP(features=(60, 30), initialization=models.lecun_normal)
chain = growth.layers(model, (8, 8, 1))
masks = growth.seed(chain, 0.4, 0.1, jax.random.key(0))
params = model.init(jax.random.key(1), train[0][:1])["params"]
params = {  # biases of units that are not there stay zero
  name: {"kernel": p["kernel"], "bias": 0 * p["bias"]} for name, p in params.items()
}
# New weights are warmed up: Adam would make their first step very large.
tx = growth.warm_up(sj.static_sparse(optax.adam(5e-3), density=1.0), steps=10)
opt_state = sj.with_masks(jax.jit(tx.init)(params), masks)
params = sj.apply_masks(params, sj.masks(opt_state))
params = sj.rescale(params, sj.masks(opt_state))
print(growth.size(masks, chain))


# %%
def loss(params, images, labels):
  logits = model.apply({"params": params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def fit(params, opt_state, key):
  def step(carry, key):
    params, opt_state = carry
    rows = jax.random.randint(key, (32,), 0, len(train[1]))
    grads = jax.grad(loss)(params, train[0][rows], train[1][rows])
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  return jax.lax.scan(step, (params, opt_state), jax.random.split(key, STEPS))[0]


@jax.jit
def accuracy(params):
  logits = model.apply({"params": params}, test[0])
  return 100 * jnp.mean((logits.argmax(-1) == test[1]).astype(jnp.float32))


# %% [markdown]
# ## Bridging gradients
#
# A virtual kernel $B$ from the inputs of one layer to the outputs of the next, at $B =
# 0$. Its gradient shows which pairs would gain from a neuron between them. `bridge`
# adds it to any flax model while it is traced.

# %%
lower, upper = chain[0], chain[1]
bridged = growth.bridge(model.apply, lower, upper)


@jax.jit
def gradients(params):
  def over_bridge(kernel):
    logits = bridged(kernel, {"params": params}, train[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, train[1]).mean()

  kernel = jnp.zeros((lower.shape[0], upper.features))
  return jax.grad(loss)(params, *train), jax.grad(over_bridge)(kernel)


# %% [markdown]
# ## Grow, then prune

# %%
history = []


def record(phase):
  live = [int(units.sum()) for units in growth.live_units(masks, chain)]
  connections = sum(int(m.sum()) for m in jax.tree.leaves(masks))
  history.append((phase, connections, live, float(accuracy(params))))
  print(f"{phase:6} {connections:5,} connections, units {live}, {history[-1][3]:.1f} %")


params, opt_state = fit(params, opt_state, jax.random.key(10))
record("seed")
images = [analysis.input_connectivity(masks["dense1"]["kernel"], (8, 8))]
for round_ in range(GROWTHS):
  grads, bridge = gradients(params)
  masks = growth.grow_connections(masks, grads, chain, 150)
  params, masks = growth.grow_neurons(
    params, masks, lower, upper, bridge, jax.random.key(round_), count=4, beta=0.05
  )
  opt_state = sj.with_masks(opt_state, masks)
  params, opt_state = fit(params, opt_state, jax.random.key(20 + round_))
  record("grow")
images.append(analysis.input_connectivity(masks["dense1"]["kernel"], (8, 8)))
for round_ in range(PRUNINGS):
  masks = growth.prune_connections(masks, params, chain, round(0.7 * history[-1][1]))
  opt_state = sj.with_masks(opt_state, masks)
  params = sj.apply_masks(params, sj.masks(opt_state))
  params, opt_state = fit(params, opt_state, jax.random.key(40 + round_))
  record("prune")
images.append(analysis.input_connectivity(masks["dense1"]["kernel"], (8, 8)))

# %% [markdown]
# ## The result
#
# The final network is smaller than the largest one and better than the seed: growth
# found the connections that matter.

# %%
colors = {"seed": "C7", "grow": "C2", "prune": "C1"}
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
rounds = np.arange(len(history))
connections = [h[1] for h in history]
left.bar(rounds, connections, color=[colors[h[0]] for h in history])
left.set(xlabel="round", ylabel="connections", title="Up, then down")
for phase, color in colors.items():
  chosen = [h for h in history if h[0] == phase]
  right.plot(
    [h[1] for h in chosen], [h[3] for h in chosen], "o", color=color, label=phase
  )
right.plot(connections, [h[3] for h in history], "-", lw=0.8, color="0.7", zorder=0)
right.set(xlabel="connections", ylabel="test accuracy, %", title="Accuracy on the way")
right.legend(frameon=False, loc="lower right")
plt.show()

# %%
figure, panels = plt.subplots(1, 3, figsize=(8, 2.7), layout="constrained")
names = ("seed", "grown", "thinned")
for panel, name, image in zip(panels, names, images, strict=True):
  drawn = panel.imshow(image, cmap="magma", vmin=0, vmax=np.max(images))
  panel.set_title(f"{name}: live weights of each pixel", fontsize=9)
  panel.set_axis_off()
figure.colorbar(drawn, ax=panels, shrink=0.8)
plt.show()
