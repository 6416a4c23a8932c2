r"""A random LeNet-300-100 on MNIST: only its mask is trained.

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_lenet300_supermask.py \
    --workdir=runs/supermask

Edge-popup (Ramanujan et al. 2020): no biases, batch normalization without scale and
shift, every layer masked, scores trained by SGD as in the paper's CIFAR-10 runs. Takes
half a minute on an idle CPU core. results/supermask.json has the expected accuracy for
each initialization and k.

Variants are an initialization, "scaled", a method and the fraction kept (k, per layer),
in any order, as in `:kaiming_normal,scaled,0.3`. The defaults are signed_constant,
unscaled, edge_popup and 0.5. "scaled" multiplies the initial weights by 1 / sqrt(k), so
set k in the variant, not by `--config.density`. bernoulli is the method of Zhou et al.
(2019): masks drawn at every step, with dynamic rescaling; k is then the initial
probability.
"""

from ml_collections import config_dict

from sparsejax import training
from sparsejax.training import use_supermask_variant


def get_config(variant: str = "") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "mnist"
  c.model = "lenet300"
  c.learning_rate = 0.1
  c.lr_schedule = "cosine"
  c.momentum = 0.9
  c.batch_size = 128
  c.num_epochs = 5
  use_supermask_variant(c, variant)
  return c
