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
# # 6. A random network contains your network
#
# Two results about random weights that are never trained.
#
# * **Strong lottery tickets** (Malach et al. 2020; Pensia et al. 2020; Orseau et al.
#   2020): a random network that is several times as wide contains, under the right
#   mask, *any* given network, to any precision $\varepsilon$. The proofs are
#   constructions, which are run here.
# * **Supermasks** (Ramanujan et al. 2020): a mask found by gradient descent in an
#   ordinary random network classifies well, though no weight of it was ever trained.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/6_random_network.ipynb)

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
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models, supermasks, theory
from sparsejax.theory import subset_sum
from sparsejax.training import data, from_flax

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
digits = data.load("digits")
to_floats = lambda split: (
  jnp.float32(split.images).reshape(-1, 64) / 16,
  jnp.asarray(split.labels),
)
train, test = to_floats(digits.train), to_floats(digits.test)

# %% [markdown]
# ## The target
#
# A small network, trained in the ordinary way, which the masks will approximate.

# %%
HIDDEN = 16 if QUICK else 64


def apply(params, x):
  hidden = jax.nn.relu(x @ params["dense1"]["kernel"])
  return hidden @ params["dense2"]["kernel"]


def loss(params, x, y):
  logits = apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def fit(params):
  tx = optax.adam(1e-2)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params, *train), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, tx.init(params)), None, length=300)[0][0]


init = jax.nn.initializers.he_normal()
target = fit(
  {
    "dense1": {"kernel": init(jax.random.key(0), (64, HIDDEN))},
    "dense2": {"kernel": init(jax.random.key(1), (HIDDEN, 10))},
  }
)
accuracy = lambda logits: np.mean(np.argmax(logits, 1) == np.asarray(test[1]))
print(f"target: {accuracy(apply(target, test[0])):.1%} right")

# %% [markdown]
# ## Approximation by masks
#
# `approximate` draws a wider random network and looks for masks: every weight $w$ of
# the target becomes a sum over a subset of random products,
# $w \approx \sum_k m_k a_k b_k$. With subset sums, ten samples per weight suffice for
# two digits of precision.

# %%
EPS = 0.02
ticket = theory.approximate(jax.tree.map(np.asarray, target), EPS)
logits = theory.run_network(ticket.layers, np.asarray(test[0][:100]))
same = np.mean(logits.argmax(1) == np.argmax(apply(target, test[0][:100]), 1))
print(f"random weights a weight: {ticket.overhead:.0f}, of them kept {ticket.kept:.1f}")
print(f"largest error of a weight: {ticket.max_weight_error:.4f} <= {EPS}")
print(f"the masked random network agrees with the target on {same:.0%} of the images")

chosen = np.concatenate([layer.weights.ravel() for layer in ticket.layers])
wanted = np.concatenate(
  [
    np.broadcast_to(w["kernel"], layer.weights.shape).ravel()
    for w, layer in zip(target.values(), ticket.layers, strict=True)
  ]
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(wanted, chosen, ".", ms=2)
left.set(xlabel="weight of the target", ylabel="sum that the mask chose")
left.set_title("Every weight is found", loc="left")
right.hist((chosen - wanted) / EPS, bins=60, range=(-0.3, 0.3))
right.set(xlabel="error / $\\varepsilon$", ylabel="weights")
right.set_title("A mask, not a rounding: most errors are tiny", loc="left")
plt.show()

# %% [markdown]
# ## One bit per sample
#
# Why so few? $n$ samples have $2^n$ subsets, so the best subset halves its error with
# every sample: $\log(1/\varepsilon)$ samples per weight, where picking the single best
# sample takes $1/\varepsilon$.

# %%
rng = np.random.default_rng(0)
goals = rng.uniform(-0.5, 0.5, 100 if QUICK else 1000)
counts = range(2, 14 if QUICK else 20)
samples = rng.uniform(-1, 1, (len(goals), max(counts)))
best_sum, best_one = [], []
for n in counts:
  masks = subset_sum(samples[:, :n], goals)
  errors = np.abs((samples[:, :n] * masks).sum(1) - goals)
  best_sum.append(np.median(errors))
  best_one.append(np.median(np.abs(samples[:, :n] - goals[:, None]).min(1)))
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
axes.semilogy(counts, best_sum, "o-", ms=4, label="best subset")
axes.semilogy(counts, best_one, "s-", ms=4, label="best single sample")
axes.semilogy(counts, 2.0 ** -np.array(counts), "--", color="0.6", label="$2^{-n}$")
axes.set(xlabel="samples n", ylabel="median error")
axes.set_title("Subsets against samples", loc="left")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Masks found by gradient descent
#
# Edge-popup gives every weight a score, uses those of the best $k$ % in each layer, and
# trains the scores. Here the weights are $\pm$ one constant per layer, and never
# change. The number of kept weights matters: at 0 and at 100 % there is nothing to
# choose.

# %%
KEPT = (0.1, 0.5, 0.9) if QUICK else (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
STEPS = 300 if QUICK else 1500
model = from_flax(
  models.create(
    "mlp",
    features=(128,),
    initialization="signed_kaiming_constant",
    use_bias=False,
    normalize=True,
  )
)
tx = supermasks.edge_popup(optax.sgd(0.1, momentum=0.9), density=0.5)


@jax.jit
def popup(params, model_state, opt_state):
  def step(carry, key):
    model_state, opt_state = carry
    rows = jax.random.randint(key, (64,), 0, len(train[1]))

    def loss(params):
      seen = sj.effective(params, opt_state)
      logits, state = model.apply(seen, model_state, train[0][rows], key)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, train[1][rows])
      return losses.mean(), state

    grads, model_state = jax.grad(loss, has_aux=True)(params)
    _, opt_state = tx.update(grads, opt_state, params)  # updates are zero
    return (model_state, opt_state), None

  keys = jax.random.split(jax.random.key(2), STEPS)
  return jax.lax.scan(step, (model_state, opt_state), keys)[0]


params, first = model.init(jax.random.key(3), train[0][:1])
found = {}
for kept in KEPT:
  # The density is in the state's budgets: one program trains them all.
  start = supermasks.edge_popup(optax.sgd(0.1, momentum=0.9), kept).init(params)
  model_state, opt_state = popup(params, first, start)
  found[kept] = model_state, opt_state


def right(kept):
  model_state, opt_state = found[kept]
  seen = sj.effective(params, opt_state)
  return 100 * accuracy(model.apply(seen, model_state, test[0], None)[0])


figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(100 * np.array(KEPT), [right(kept) for kept in KEPT], "o-")
axes.set(xlabel="weights kept, %", ylabel="test accuracy, %", xlim=(0, 100))
axes.set_title("Random weights, a learned mask", loc="left")
plt.show()

# %% [markdown]
# ## A network as a seed and a mask
#
# The result of training is one bit per weight. The weights are drawn again from their
# seed, and a hash verifies them.

# %%
model_state, opt_state = found[0.5]
with tempfile.TemporaryDirectory() as folder:
  file = os.path.join(folder, "digits.npz")
  masks = sj.masks(opt_state)
  supermasks.save_supermask(file, masks, seed=3, params=params, state=model_state)
  draw = lambda seed: model.init(jax.random.key(seed), train[0][:1])[0]
  loaded = supermasks.load_supermask(file, draw, model_state)
  packed = sum(leaf.size for leaf in jax.tree.leaves(sj.pack(masks)))
  dense = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
logits, _ = model.apply(loaded.params, loaded.state, test[0], None)
print(f"loaded: {accuracy(logits):.1%} right, {packed:,} bytes of masks for {dense:,}")
