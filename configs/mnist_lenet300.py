"""LeNet-300-100 on MNIST, by the recipe of Dettmers & Zettlemoyer (2019).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_lenet300.py --workdir=runs/lenet300

About two minutes on one CPU core. Expect a test error of 1.57 % (mean of 5 seeds,
standard error 0.016); the paper's at this density is 1.53 %. Other densities are in
results/mnist_sparse_momentum.json.

Variants, as in `--config=configs/mnist_lenet300.py:rigl`: sparse_momentum (the
default), sparse_evolution, rigl, static_sparse, gradual_magnitude, dense.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "sparse_momentum") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "mnist"
  c.model = "lenet300"
  c.density = 0.05
  c.update_every = 540  # an epoch: 54,000 images in batches of 100
  c.learning_rate = 0.1
  c.lr_schedule = "step"
  c.lr_decay_every = 25_000
  c.lr_decay_factor = 0.1
  c.momentum = 0.9
  c.weight_decay = 5e-4
  c.batch_size = 100
  c.num_epochs = 100
  training.use_method(c, variant)
  return c
