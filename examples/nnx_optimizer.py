"""Trains digits with Flax NNX: a sparse optimizer inside `nnx.Optimizer`."""

import optax
from flax import nnx
from sklearn.datasets import load_digits

import sparsejax as sj

x, y = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels, from 0 to 16
x = x.astype("float32") / 16
rngs = nnx.Rngs(0)
layers = [nnx.Linear(64, 100, rngs=rngs), nnx.relu, nnx.Linear(100, 10, rngs=rngs)]
model = nnx.Sequential(*layers)
tx = sj.sparse_momentum(optax.sgd(0.3, 0.9), 0.1, update_every=20, end_step=200)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
params, masks = nnx.state(model, nnx.Param), sj.masks(optimizer.opt_state)
nnx.update(model, sj.apply_masks(params, masks))  # sparse from the first gradient on


def loss(model, x, y):
  return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model, optimizer):
  optimizer.update(model, nnx.grad(loss)(model, x[:1500], y[:1500]))


for _ in range(300):
  step(model, optimizer)

masks = sj.masks(optimizer.opt_state)
print(sj.summary(nnx.state(model, nnx.Param), masks))
accuracy = (model(x[1500:]).argmax(-1) == y[1500:]).mean()
print(f"test accuracy {accuracy:.3f} with a tenth of the weights")
