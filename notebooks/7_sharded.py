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
# # 7. Sharded sparse training on eight virtual devices
#
# A kernel too large for one device is sharded over several. Selecting its k largest
# scores must not gather it: here devices exchange only counts. The masks equal those of
# one device bit for bit, and have the sharding of their weights.
#
# Eight CPU devices stand in for eight accelerators; the program is the same.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/7_sharded.ipynb)

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
import re

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj
from sparsejax import models
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
WIDTH, STEPS = (128, 60) if QUICK else (1024, 200)
mesh = jax.make_mesh(
  (2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
)
print(mesh)

# %% [markdown]
# ## The mesh and the shardings
#
# Batches are split over `data`, kernels over `model`: the first by columns, the second
# by rows, so that their product needs one sum. Everything else is replicated. The
# optimizer needs no change.

# %%
digits = data.load("digits")
images = jnp.float32(digits.train.images) / 16
labels = jnp.asarray(digits.train.labels)
model = models.MLP(features=(WIDTH, WIDTH), initialization=models.lecun_normal)
params = model.init(jax.random.key(0), images[:1])["params"]
LAYOUT = {"dense1/kernel": P(None, "model"), "dense2/kernel": P("model", None)}


def layout(path, leaf):
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  return NamedSharding(mesh, LAYOUT.get(name, P()))


shardings = jax.tree_util.tree_map_with_path(layout, params)
tx = sj.sparse_momentum(
  optax.sgd(0.1, momentum=0.9), density=0.1, update_every=20, drop_fraction=0.3
)


def loss(params, images, labels):
  logits = model.apply({"params": params}, images)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def step(params, opt_state, images, labels):
  grads = jax.grad(loss)(params, images, labels)
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# ## Masks and moments have the sharding of their weights
#
# From `init` on. The numbers are the devices that store a block; each half of the batch
# has a copy.

# %%
start = jax.jit(lambda params: sj.init(tx, params))
sharded, opt_state = start(jax.device_put(params, shardings))
masks = sj.masks(opt_state)
moments = optax.tree.get(opt_state, "trace")
figure, panels = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
shown = {
  "kernel 1": sharded["dense1"]["kernel"],
  "its mask": masks["dense1"]["kernel"],
  "kernel 2": sharded["dense2"]["kernel"],
  "its momentum": moments["dense2"]["kernel"],
}
for panel, (name, array) in zip(panels, shown.items(), strict=True):
  owner = np.full(array.shape, -1)
  holders = {}
  for shard in array.addressable_shards:
    holders.setdefault(str(shard.index), (shard.index, []))[1].append(shard.device.id)
  for index, devices in holders.values():
    owner[index] = devices[0]
    center = [
      np.mean([s.start or 0, s.stop or n])
      for s, n in zip(index, array.shape, strict=True)
    ]
    label = ", ".join(map(str, devices))
    panel.text(center[1], center[0], label, ha="center", va="center")
  panel.imshow(owner, cmap="Pastel1", aspect="auto", vmin=0, vmax=8)
  panel.set_title(f"{name}, {array.dtype}", fontsize=9)
  panel.set_xticks([])
  panel.set_yticks([])
plt.show()

# %% [markdown]
# ## One mask update, on one device and on eight
#
# With equal weights and gradients, the new masks are equal bit for bit. (Whole runs
# differ in the last bits of their gradients, because sums are taken in another order;
# so do dense runs.)

# %%
grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
update = jax.jit(lambda g, s, p: tx.update(g, s, p, update_masks=jnp.asarray(True))[1])
alone = sj.masks(update(grads, jax.jit(tx.init)(params), params))
spread = sj.masks(update(jax.device_put(grads, shardings), opt_state, sharded))
for one, eight in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
  np.testing.assert_array_equal(one, eight)
print("masks are equal:", [m.sharding.spec for m in jax.tree.leaves(spread)])

# %% [markdown]
# ## Communication
#
# The collectives in the compiled mask update, by the largest array that each moves. The
# kernels of the hidden layers have tens of thousands of weights and more; none is
# gathered.

# %%
compiled = update.lower(jax.device_put(grads, shardings), opt_state, sharded).compile()
found = {}
pattern = r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute)\("
for shape, kind in re.findall(pattern, compiled.as_text()):
  sizes = [
    int(np.prod([int(n) for n in dims.split(",") if n]))
    for dims in re.findall(r"\w+\[([\d,]*)\]", shape)
  ]
  found.setdefault(kind, []).append(max(sizes))
for kind, sizes in found.items():
  print(f"{kind}: {len(sizes)}, the largest of {max(sizes):,} elements")
assert max(found.get("all-gather", [0])) < WIDTH * WIDTH // 8

# %% [markdown]
# ## Training
#
# The loop is that of a single device; only the shardings of the arrays differ.

# %%
params, losses = sj.rescale(sharded, masks), []
evaluate = jax.jit(lambda params: loss(params, images, labels))
for count in range(STEPS):
  rows = np.random.default_rng(count).permutation(len(labels))[:256]
  batch = jax.device_put((images[rows], labels[rows]), NamedSharding(mesh, P("data")))
  # Waited for: eight devices on a few cores must not queue up several steps.
  params, opt_state = jax.block_until_ready(step(params, opt_state, *batch))
  if count % 10 == 9:
    losses.append(float(evaluate(params)))

print(sj.summary(params, sj.masks(opt_state)))
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.plot(np.arange(10, STEPS + 1, 10), losses, "o-", ms=3)
axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axes.set_title("A tenth of the weights, eight devices", loc="left")
plt.show()
