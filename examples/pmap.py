"""Digits by `jax.pmap`: a replica a device, and a check that their masks agree."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import sparsejax as sj
from sparsejax import core

devices = jax.local_device_count()
x, y = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels, from 0 to 16
x = x.astype("float32") / 16
rows = 1500 // devices  # of each device
images = x[: devices * rows].reshape(devices, rows, 64)
labels = y[: devices * rows].reshape(devices, rows)
model = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)])
sgd = optax.sgd(0.3, momentum=0.9)
tx = sj.sparse_momentum(sgd, density=0.1, update_every=20, end_step=200)
params = model.init(jax.random.key(0), x)
replicas = jax.tree.map(lambda a: jnp.stack([a] * devices), (params, tx.init(params)))


def loss(params, x, y):
  logits = model.apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def step(replica, x, y):
  params, opt_state = replica
  # From gradients of their own, replicas would choose masks of their own.
  grads = jax.lax.pmean(jax.grad(loss)(params, x, y), "devices")
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


@functools.partial(jax.pmap, axis_name="devices")
def steps(replica, x, y):  # to the next mask update, and with it
  return jax.lax.fori_loop(0, 20, lambda _, replica: step(replica, x, y), replica)


for _ in range(15):
  replicas = steps(replicas, images, labels)
  core.check_replicas(sj.masks(replicas[1]), stacked=True)

params, opt_state = jax.tree.map(lambda a: a[0], replicas)
print(sj.summary(params, sj.masks(opt_state)))
accuracy = (model.apply(params, x[1500:]).argmax(-1) == y[1500:]).mean()
print(f"test accuracy {accuracy:.3f} with a tenth of the weights, {devices} devices")
