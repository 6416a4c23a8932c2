r"""A random LeNet-300-100 whose mask is learned on MNIST and whose weights never are.

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_lenet300_supermask.py \
    --workdir=runs/supermask

Edge-popup (Ramanujan et al. 2020): no biases, batch normalization without scale and
shift, every layer masked, scores trained by SGD as in the paper's CIFAR-10 runs. Half a
minute on a quiet CPU core. What to expect for each initialization and k stands in
results/supermask.json.

Variants are an initialization, "scaled", a method and the fraction kept (k, of each
layer), in any order, as in `:kaiming_normal,scaled,0.3`; what is left out is
signed_constant, unscaled, edge_popup, 0.5. "scaled" draws weights 1 / sqrt(k) as large,
so give k in the variant, not by `--config.density`. bernoulli is Zhou et al.'s (2019):
masks drawn at every step, with dynamic rescaling; there k is the probability at the
start.
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
