"""A vanilla CNN of thousands of layers on CIFAR-10, by its initialization alone.

Launch (after `python scripts/prepare_data.py cifar10`):
  python scripts/train.py --config=configs/cifar10_deep_cnn.py --workdir=runs/deep_cifar

Variants are a depth, an initialization and a width, as in
`--config=configs/cifar10_deep_cnn.py:5000,delta_orthogonal,64`; what is left out is
1250, delta_orthogonal, 48, which folds 4 x 4 pixels into channels. Some seconds a step
on two CPU cores: meant for accelerators, where the paper (Xiao et al. 2018) reaches
about 82 %.
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
  # Measured: a gradient's mean square is about 0.76 a layer.
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
