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
# # 2. Watch sparse momentum
#
# Dettmers and Zettlemoyer (2019) keep the optimizer's momentum for all weights, dead
# ones too: its magnitude says which dead weights would lower the loss, and its mean
# over a layer's live weights says how efficient the layer is. At every mask update
#
# 1. each layer *drops* a fraction of its live weights, the smallest in magnitude;
# 2. the freed budget is *redistributed* in proportion to the layers' mean $|m|$;
# 3. each layer *grows* its dead weights of the largest $|m|$.
#
# Here we plot all three while a small network learns the 8 x 8 digits.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/2_sparse_momentum_watched.ipynb)

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
ROUNDS, EVERY, DENSITY = (12, 20, 0.05) if QUICK else (40, 40, 0.05)

digits = data.load("digits")
to_floats = lambda split: (jnp.float32(split.images) / 16, jnp.asarray(split.labels))
train, test = to_floats(digits.train), to_floats(digits.test)
model = models.MLP(features=(128, 64))
params = model.init(jax.random.key(0), train[0][:1])["params"]
tx = sj.sparse_momentum(
  optax.sgd(0.1, momentum=0.9, nesterov=True),
  density=DENSITY,
  update_every=EVERY,
  drop_fraction=optax.cosine_decay_schedule(0.5, ROUNDS * EVERY),
)
params, opt_state = sj.init(tx, params)

# %% [markdown]
# One call of `to_next_update` ends with a mask update. Momentum is found in the inner
# optimizer's state by its structure; here we look at it by name.


# %%
def loss(params, images, labels):
  logits = model.apply({"params": params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def to_next_update(params, opt_state, key):
  def step(carry, key):
    params, opt_state = carry
    rows = jax.random.randint(key, (64,), 0, len(train[1]))
    grads = jax.grad(loss)(params, train[0][rows], train[1][rows])
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  keys = jax.random.split(key, EVERY)
  return jax.lax.scan(step, (params, opt_state), keys)[0]


LAYERS = list(params)
kernels = lambda tree: [np.asarray(tree[name]["kernel"]) for name in LAYERS]
history = [kernels(sj.masks(opt_state))]
for round_ in range(ROUNDS):
  before = params
  params, opt_state = to_next_update(params, opt_state, jax.random.key(round_))
  history.append(kernels(sj.masks(opt_state)))
  if round_ == ROUNDS // 3:
    snapshot = {
      "weights": kernels(params),
      "momentum": kernels(optax.tree.get(opt_state, "trace")),
      "before": history[-2],
      "after": history[-1],
    }

accuracy = (model.apply({"params": params}, test[0]).argmax(-1) == test[1]).mean()
print(f"test accuracy {accuracy:.1%} with {DENSITY:.0%} of the weights")

# %% [markdown]
# ## Budget moves between layers
#
# All layers begin at the same density. Their budgets change; the sum does not.

# %%
live = np.array([[mask.sum() for mask in masks] for masks in history])
assert (live.sum(1) == live[0].sum()).all()
sizes = np.array([mask.size for mask in history[0]])
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
steps = np.arange(ROUNDS + 1) * EVERY
left.stackplot(steps, live.T, labels=LAYERS, alpha=0.85)
left.set(xlabel="step", ylabel="live weights", title="Budgets", xlim=(0, steps[-1]))
left.legend(frameon=False, loc="lower right")
right.plot(steps, 100 * live / sizes, label=LAYERS)
right.set(xlabel="step", ylabel="density, %", yscale="log", title="Densities")
right.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
right.minorticks_off()
right.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown]
# ## The mask as an image
#
# The number of live weights per input pixel. The network is not given the geometry of
# images, and still removes the pixels at the left and right edge, which are nearly
# always black.

# %%
figure, panels = plt.subplots(1, 4, figsize=(10, 2.7), layout="constrained")
panels[0].imshow(np.asarray(train[0]).std(0)[..., 0], cmap="viridis")
panels[0].set_title("standard deviation", fontsize=9)
chosen = (0, ROUNDS // 4, ROUNDS)
images = [history[i][0].sum(1).reshape(8, 8) for i in chosen]
for panel, round_, image in zip(panels[1:], chosen, images, strict=True):
  drawn = panel.imshow(image, cmap="magma", vmin=0, vmax=np.max(images))
  panel.set_title(f"live weights, step {round_ * EVERY}", fontsize=9)
figure.colorbar(drawn, ax=panels, shrink=0.8)
for panel in panels:
  panel.set_xticks([])
  panel.set_yticks([])
plt.show()

# %% [markdown]
# ## Momentum against weight
#
# The second layer just after a mask update. Masked weights are zero, so they are at the
# left edge. Those above the dashed line, with the largest momentum, have grown and are
# now one step away from zero. The dropped weights were the smallest of the live ones.

# %%
weights, momenta = (np.abs(snapshot[k][1]).ravel() for k in ("weights", "momentum"))
before, after = (snapshot[k][1].ravel() for k in ("before", "after"))
groups = {
  "stays dead": ~before & ~after,
  "dropped": before & ~after,
  "stays live": before & after,
  "grown": ~before & after,
}
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
floor = 1e-4
for (name, chosen), color in zip(
  groups.items(), ("0.8", "C3", "C0", "C1"), strict=True
):
  x = np.where(
    weights[chosen], weights[chosen], floor * (1 + 0.3 * (name == "dropped"))
  )
  label = f"{name} ({chosen.sum():,})"
  axes.loglog(x, momenta[chosen] + 1e-7, ".", ms=4, color=color, label=label)
if groups["grown"].any():
  axes.axhline(momenta[groups["grown"]].min(), color="C1", ls="--", lw=1)
axes.set(xlabel="|w| after the update", ylabel="|m|", ylim=(1e-6, None))
axes.set_title("One mask update of the second layer", loc="left")
axes.legend(frameon=False, loc="lower center")
plt.show()
