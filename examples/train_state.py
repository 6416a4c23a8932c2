"""Trains digits with Flax's `TrainState`: a sparse optimizer is an ordinary `tx`."""

import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import sparsejax as sj

x, y = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels, from 0 to 16
x = x.astype("float32") / 16
model = nn.Sequential([nn.Dense(100), nn.relu, nn.Dense(10)])
params = model.init(jax.random.key(0), x)
sgd = optax.sgd(0.3, momentum=0.9)
tx = sj.sparse_momentum(sgd, density=0.1, update_every=20, end_step=200)
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
# Mask the initial parameters, so that the first gradient is that of the sparse network.
state = state.replace(params=sj.apply_masks(params, sj.masks(state.opt_state)))


@jax.jit
def step(state):
  def loss(params):
    logits = state.apply_fn(params, x[:1500])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[:1500]).mean()

  return state.apply_gradients(grads=jax.grad(loss)(state.params))


for _ in range(300):
  state = step(state)

print(sj.summary(state.params, sj.masks(state.opt_state)))
accuracy = (model.apply(state.params, x[1500:]).argmax(-1) == y[1500:]).mean()
print(f"test accuracy {accuracy:.3f} with a tenth of the weights")
