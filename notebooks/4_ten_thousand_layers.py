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
# # 4. Ten thousand layers, and why they can be trained
#
# Xiao et al. (2018) train convolutional networks of 10,000 layers without residuals or
# normalization, by their initial weights alone. Two things must hold at the start:
#
# * **criticality**: signals neither converge nor decorrelate with depth. A mean-field
#   theory says for which variances, $\chi = 1$, and how deep a network of other
#   variances can be: some six correlation lengths $\xi$;
# * **dynamical isometry**: all singular values of the end-to-end Jacobian lie near 1,
#   and not only their mean square. Gaussian kernels cannot do this at any variance;
#   delta-orthogonal ones can.
#
# [Open in Colab](https://colab.research.google.com/github/sparsejax/sparsejax/blob/main/notebooks/4_ten_thousand_layers.ipynb)

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

from sparsejax import analysis, initializers, models
from sparsejax.initializers import mean_field
from sparsejax.training import data

QUICK = bool(os.environ.get("SPARSEJAX_QUICK"))
DEPTHS = (10, 100, 1000) if QUICK else (10, 100, 1000, 10_000)

# %% [markdown]
# ## Criticality
#
# `trainable_depth` returns the phase, the correlation length and the depth.

# %%
print(initializers.trainable_depth(1.3, 2.01e-5, depth=10_000))
print(initializers.trainable_depth(1.0, 0.0, depth=10_000, q=1e-4))

# %%
variances = np.linspace(0.85, 1.45, 7 if QUICK else 25)
lengths = [mean_field.correlation_length(v, 2.01e-5) for v in variances]
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.semilogy(variances, 6 * np.array(lengths), "o-", ms=4)
axes.axvline(
  mean_field.critical_line(bias_variance=2.01e-5).weight_variance, color="0.6", ls="--"
)
axes.set(xlabel="$\\sigma_w^2$", ylabel="$6\\,\\xi$, layers")
axes.set_title(
  "How deep: the theory, tanh, $\\sigma_b^2 = 2.01 \\cdot 10^{-5}$", loc="left"
)
plt.show()

# %% [markdown]
# ## Isometry
#
# The spectrum of $J = D_L W_L \cdots D_1 W_1$ at initialization, on the critical line,
# for an image of 4 x 4 pixels. The product is rescaled layer by layer, so that nothing
# underflows; float32 resolves seven decades below the largest value. The inputs have
# mean square $1/L$, which keeps tanh nearly linear all the way.


# %%
def spectrum(kernel_init, depth):
  model = models.VanillaCNN(depth=depth, channels=8, kernel_init=kernel_init)
  images = jnp.zeros((1, 16, 16, 1))
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  x = jax.random.normal(jax.random.key(1), (4, 4, 8)) * model.q0**0.5
  return analysis.end_to_end(model.layer, params["trunk"], x)


spectra = {
  name: {depth: spectrum(name, depth) for depth in DEPTHS}
  for name in ("delta_orthogonal", "gaussian")
}
analysis.plot_spectra(spectra)

# %%
for name, by_depth in spectra.items():
  last = by_depth[DEPTHS[-1]]
  print(
    f"{name}: at {DEPTHS[-1]:,} layers the median singular value is"
    f" 10^{last.log10_median:.2f}, the condition number {last.condition_number:.3g}"
  )

# %% [markdown]
# ## Training
#
# A few steps show the difference: the same network, data and rule for the learning rate
# ($\propto 1/L$), with two initializations. The delta-orthogonal network learns at
# once; the Gaussian one stays at chance, $\ln 10$. `configs/mnist_deep_cnn.py` goes
# to 10,000 layers on MNIST.

# %%
DEPTH, STEPS = (200, 40) if QUICK else (2000, 200)
digits = data.load("digits")
images = np.asarray(digits.train.images, np.float32)
images = images - images.mean(0)
images = jnp.asarray(images / images.std())
labels = jnp.asarray(digits.train.labels)


def losses(kernel_init):
  model = models.VanillaCNN(depth=DEPTH, channels=16, kernel_init=kernel_init)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]
  rate = 0.5 / (0.76 * DEPTH)
  readout = params["readout"]["kernel"].shape[0]
  scales = {"trunk/bias": 1 / DEPTH, "readout": 3 / readout / rate}
  tx = optax.chain(optax.sgd(rate), models.scale_by_path(scales))

  def loss(params, rows):
    logits = model.apply({"params": params}, images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

  @jax.jit
  def run(params):
    def step(carry, key):
      params, opt_state = carry
      rows = jax.random.randint(key, (32,), 0, len(labels))
      value, grads = jax.value_and_grad(loss)(params, rows)
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    keys = jax.random.split(jax.random.key(2), STEPS)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

  return np.asarray(run(params))


figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name in spectra:
  axes.plot(losses(name), label=name.replace("_", "-"))
axes.axhline(np.log(10), color="0.6", ls="--")
axes.text(0, np.log(10), " chance", va="bottom", color="0.4")
axes.set(xlabel="step", ylabel="training loss", ylim=(0, 3))
axes.set_title(f"{DEPTH:,} layers on the digits", loc="left")
axes.legend(frameon=False)
plt.show()
