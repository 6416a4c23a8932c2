"""A vanilla CNN of up to 10,000 layers on MNIST, trainable by its initialization.

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_deep_cnn.py --workdir=runs/deep_cnn

Variants are a depth, an initialization and a width, as in
`--config=configs/mnist_deep_cnn.py:5000,sparse_orthogonal,32`. The defaults are 1250,
delta_orthogonal and 16; the depths of the paper are 1250, 2500, 5000 and 10000. An
epoch is 3,750 steps of 16 images. A step takes 0.3 seconds at 1,250 layers on two CPU
cores, and 2.7 at 10,000. After 300 steps the accuracy is 90 % at each of these depths
(results/deep_cnn.json, whose script trains batch by batch, without an epoch's
schedule). The paper (Xiao et al. 2018), with accelerators, longer training and wider
networks, reaches about 99 %.

sparse_orthogonal trains 0.25 of the weights by RigL, with an orthogonal matrix that
each layer keeps (`sj.isometric`). gaussian and lecun are controls that learn nothing.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "") -> config_dict.ConfigDict:
  depth, kernel_init, channels = _parse(variant)
  c = training.default_config()
  c.dataset = "mnist"
  c.validation_fraction = 0.0
  c.centering = "pixel"
  c.model = "vanilla_cnn"
  c.model_kwargs = {"depth": depth, "kernel_init": kernel_init, "channels": channels}
  # The mean square of the gradient, as measured, is about 0.76 per layer.
  c.learning_rate = 0.5 / (0.76 * depth)
  inputs = 49 * channels  # of the read-out
  c.lr_scales = {"trunk/bias": 1 / depth, "readout": 3 / inputs / c.learning_rate}
  c.lr_schedule = "cosine"
  c.warmup_epochs = 0.01
  c.momentum = 0.0
  c.weight_decay = 0.0
  c.batch_size = 16
  c.num_epochs = 1
  c.log_every = 50
  training.use_method(c, "dense")
  if kernel_init == "sparse_orthogonal":
    training.use_method(c, "isometric")
    c.density = 0.25
    c.method_kwargs = {"where": "trunk/kernel", "stacked": "trunk/kernel"}
    # The mean square of the masked gradient is smaller by the factor of the density.
    c.learning_rate /= c.density
    c.lr_scales = {"trunk/bias": 1 / depth, "readout": 3 / inputs / c.learning_rate}
  return c


def _parse(variant: str) -> tuple[int, str, int]:
  """Depth, initialization and width, in any order."""
  depth, kernel_init, channels = 1250, "delta_orthogonal", 16
  for word in filter(None, variant.split(",")):
    if not word.isdigit():
      kernel_init = word
    elif int(word) > 512:
      depth = int(word)
    else:
      channels = int(word)
  return depth, kernel_init, channels
