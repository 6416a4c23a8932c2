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
# # 8. Sparse and faster
#
# Masks alone make no step faster: a masked kernel costs what a dense one costs. If the
# live weights come in whole blocks, the product can skip the dead blocks, forward and
# backward. This takes three changes to a training loop:
#
# 1. `structure=sj.block((b, b))`, so that masks consist of whole blocks;
# 2. `sj.block_dot` (or `dot_general=sj.block_dot_general((b, b))` in a flax layer) in
#    place of the product;
# 3. `sj.mark_dead(params, opt_state)` in the loss, which tells the products which
#    blocks are dead.
#
# Here we train a small network, see which path each product takes, and measure a step
# against density. Run nothing else meanwhile: the dense product uses all cores. Quick
# mode shows only that all of it runs: at its width the sparse step gains nothing.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/8_sparse_and_faster.ipynb)

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
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparsejax as sj

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
WIDTH, BATCH, BLOCK, ROUNDS = (512, 256, 64, 3) if QUICK else (2048, 1024, 128, 15)
DENSITIES = (0.125, 0.5) if QUICK else (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)

# %% [markdown]
# ## A network
#
# Two wide layers between a dense first and a dense last one. The task is made up: the
# images are noise around one of ten centers.

# %%
rng = np.random.default_rng(0)
centers = rng.normal(size=(10, WIDTH)).astype(np.float32)
labels = jnp.asarray(rng.integers(10, size=BATCH))
x = jnp.asarray(centers[labels] + 2 * rng.normal(size=(BATCH, WIDTH)), jnp.float32)


def init(key):
  keys = jax.random.split(key, 3)
  normal = jax.nn.initializers.he_normal()
  return {
    "wide1": {"kernel": normal(keys[0], (WIDTH, WIDTH))},
    "wide2": {"kernel": normal(keys[1], (WIDTH, WIDTH))},
    "head": {"kernel": normal(keys[2], (WIDTH, 10))},
  }


def loss(params, x, labels, product=jnp.matmul):
  for name in ("wide1", "wide2"):
    x = jax.nn.relu(product(x, params[name]["kernel"]))
  logits = x @ params["head"]["kernel"]
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def skipping(x, kernel):
  return sj.block_dot(x, kernel, (BLOCK, BLOCK))


# %% [markdown]
# ## The step
#
# RigL drops and grows whole blocks. At a mask update it needs the gradients of all
# weights; `mark_dead` reads from the optimizer's state that one is due, and marks
# nothing then, so that step is dense.


# %%
def optimizer(density):
  return sj.rigl(
    optax.sgd(0.05, momentum=0.9),
    density,
    update_every=100,
    where="wide",
    structure=sj.block((BLOCK, BLOCK)),
  )


def make_step(tx):
  @jax.jit
  def step(params, opt_state, x, labels):
    def marked(params):
      return loss(sj.mark_dead(params, opt_state), x, labels, skipping)

    value, grads = jax.value_and_grad(marked)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  return step


tx = optimizer(0.125)
params, opt_state = sj.init(tx, init(jax.random.key(0)))
step = make_step(tx)
for i in range(20):
  params, opt_state, value = step(params, opt_state, x, labels)
  if i % 5 == 0:
    print(f"step {i:2d}: loss {value:.4f}")

# %% [markdown]
# ## Which path did each product take?
#
# `explain` runs the loss once and reports every product. A product is dense where too
# many blocks are live, where blocks are small, or where the block does not divide the
# kernel; `reason` says why.

# %%
for product in sj.ops.explain(
  lambda params, x: loss(params, x, labels, skipping), params, opt_state, x
):
  print(
    f"{product.kernel}: {product.path}, {product.live} of {product.blocks} blocks live,"
    f" {product.saving:.0%} of the multiply-adds skipped. {product.reason}"
  )

# %% [markdown]
# The live blocks of the second kernel, after training:

# %%
mask = sj.masks(opt_state)["wide2"]["kernel"]
figure, axes = plt.subplots(figsize=(3, 3))
axes.imshow(mask, cmap="Greys", interpolation="nearest")
axes.set_title(f"wide2/kernel, density {mask.mean():.3g}", fontsize=10)
axes.set_xlabel("output")
axes.set_ylabel("input")
plt.show()

# %% [markdown]
# ## Step time against density
#
# The sparse step, with its optimizer, beside a plain optax step of the same dense
# network. Rounds alternate between all programs, and each point is a median.


# %%
def dense_step():
  inner = optax.sgd(0.05, momentum=0.9)
  params = init(jax.random.key(0))
  state = inner.init(params)

  @jax.jit
  def step(params, state, x, labels):
    grads = jax.grad(loss)(params, x, labels)
    updates, state = inner.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return lambda: step(params, state, x, labels)


def sparse_step(density):
  tx = optimizer(density)
  params, state = sj.init(tx, init(jax.random.key(0)))
  step = make_step(tx)
  params, state, _ = step(params, state, x, labels)
  return lambda: step(params, state, x, labels)


calls = {1.0: dense_step()} | {d: sparse_step(d) for d in DENSITIES}
seconds = {density: [] for density in calls}
for round_ in range(ROUNDS + 1):
  for density, call in calls.items():
    start = time.perf_counter()
    jax.block_until_ready(call())
    if round_:  # the first round compiles
      seconds[density].append(time.perf_counter() - start)
medians = {density: 1e3 * float(np.median(s)) for density, s in seconds.items()}
for density in DENSITIES:
  print(f"density {density:g}: {medians[1.0] / medians[density]:.2f} times as fast")

# %%
figure, axes = plt.subplots(figsize=(5, 3.2))
axes.axhline(medians[1.0], color="0.5", label="dense, plain optax")
axes.plot(
  [0, 1],
  [0, medians[1.0]],
  color="0.8",
  linestyle="--",
  label="proportional to density",
)
axes.plot(
  DENSITIES,
  [medians[d] for d in DENSITIES],
  marker="o",
  label=f"RigL, blocks of {BLOCK}",
)
axes.set_xlim(0, 1)
axes.set_ylim(0)
axes.set_xlabel("density")
axes.set_ylabel("milliseconds per step")
axes.legend(frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()

# %% [markdown]
# Above the share of live blocks that is worth a loop, the products are dense, so a step
# there costs as much as a dense one plus the masks. What remains at low densities is
# the dense last layer, the optimizer, and finding the live blocks.
#
# More in docs/how_to/sparse_execution.md; all measured rows are in
# results/execution.json.
