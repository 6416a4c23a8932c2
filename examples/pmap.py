"""Trains digits by `jax.pmap`, one replica per device, and checks that masks agree."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy
from sklearn.datasets import load_digits

import sparsejax as sj
from sparsejax import core

devices = jax.local_device_count()
x, y = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels, from 0 to 16
x = x.astype("float32") / 16
images, labels = (a[:1440].reshape(devices, -1, *a.shape[1:]) for a in (x, y))
model = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)])
tx = sj.sparse_momentum(optax.sgd(0.3, 0.9), 0.1, update_every=20, end_step=200)
params = model.init(jax.random.key(0), x)
replicas = jax.tree.map(lambda a: jnp.stack([a] * devices), sj.init(tx, params))
loss = lambda params, x, y: cross_entropy(model.apply(params, x), y).mean()


def step(params, opt_state, x, y):
  grads = jax.lax.pmean(jax.grad(loss)(params, x, y), "devices")  # or masks differ
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


train = jax.pmap(step, axis_name="devices")
for _ in range(300):
  replicas = train(*replicas, images, labels)
  core.check_replicas(sj.masks(replicas[1]), stacked=True)

params, opt_state = jax.tree.map(lambda a: a[0], replicas)
accuracy = (model.apply(params, x[1440:]).argmax(-1) == y[1440:]).mean()
print(sj.summary(params, sj.masks(opt_state)), f"accuracy {accuracy:.3f}", sep="\n")
