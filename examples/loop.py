"""Trains digits in a hand-written loop; only the optimizer is wrapped."""

import jax
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import sparsejax as sj

x, y = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels, from 0 to 16
x = x.astype("float32") / 16
model = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)])
params = model.init(jax.random.key(0), x)
sgd = optax.sgd(0.3, momentum=0.9)
tx = sj.sparse_momentum(sgd, density=0.1, update_every=20, end_step=200)
params, opt_state = sj.init(tx, params)


def loss(params, x, y):
  logits = model.apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, opt_state):
  grads = jax.grad(loss)(params, x[:1500], y[:1500])
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


for _ in range(300):
  params, opt_state = step(params, opt_state)

print(sj.summary(params, sj.masks(opt_state)))
accuracy = (model.apply(params, x[1500:]).argmax(-1) == y[1500:]).mean()
print(f"test accuracy {accuracy:.3f} with a tenth of the weights")
