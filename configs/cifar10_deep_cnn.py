"""A vanilla CNN of thousands of layers on CIFAR-10, trainable by its initialization.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_deep_cnn.py --workdir=runs/deep_cifar

Variants are a depth, an initialization and a width, as in
`--config=configs/cifar10_deep_cnn.py:5000,delta_orthogonal,64`. The defaults are 1250,
delta_orthogonal and 48, which folds 4 x 4 pixels into channels. A step takes some
seconds on two CPU cores; the config is meant for accelerators, where the paper (Xiao et
al. 2018) reaches about 82 %.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "") -> config_dict.ConfigDict:
  depth, kernel_init, channels = 1250, "delta_orthogonal", 48
  for word in filter(None, variant.split(",")):
    if not word.isdigit():
      kernel_init = word
    elif int(word) > 512:
      depth = int(word)
    else:
      channels = int(word)
  c = training.default_config()
  c.dataset = "cifar10"
  c.centering = "pixel"
  c.model = "vanilla_cnn"
  c.model_kwargs = {"depth": depth, "kernel_init": kernel_init, "channels": channels}
  # The mean square of the gradient, as measured, is about 0.76 per layer.
  c.learning_rate = 0.3 / (0.76 * depth)
  inputs = 64 * channels  # of the read-out
  c.lr_scales = {"trunk/bias": 1 / depth, "readout": 1 / inputs / c.learning_rate}
  c.lr_schedule = "cosine"
  c.warmup_epochs = 0.05
  c.momentum = 0.0
  c.weight_decay = 0.0
  c.batch_size = 64
  c.num_epochs = 20
  c.log_every = 50
  training.use_method(c, "dense")
  return c
