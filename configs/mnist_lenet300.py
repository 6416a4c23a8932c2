"""LeNet-300-100 on MNIST, by the recipe of Dettmers & Zettlemoyer (2019).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_lenet300.py --workdir=runs/lenet300

About two minutes on one CPU core. Expect a test error of 1.57 % (mean of 5 seeds,
standard error 0.016); the paper's error at this density is 1.53 %. The results of other
densities are in results/mnist_sparse_momentum.json.

Variants, as in `--config=configs/mnist_lenet300.py:rigl`: the names of
sparsejax/training/_methods.py; sparse_momentum is the default.
results/mnist_methods.json compares them.
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
  # Methods that grow at random need many updates. The values were chosen by validation
  # accuracy with seed 0.
  if variant == "dsr":
    # At 1 % of the weights, replacing a tenth of them once per epoch reaches 96.9 %,
    # three tenths 97.2 %, and three tenths five times as often 97.6 %.
    c.update_every = 100
    c.drop_fraction = c.final_drop_fraction = 0.3
  elif variant == "mest":
    # Growth at random, as in DSR.
    c.update_every = 100
  elif variant == "deep_r":
    # At 2 % of the weights this l1 penalty reaches 98.0 %, 1e-5 97.6 % and 5e-4 94.6 %.
    c.method_kwargs = config_dict.ConfigDict({"l1": 1e-4})
    c.update_every = 20
    c.end_fraction = 0.75
  return c
