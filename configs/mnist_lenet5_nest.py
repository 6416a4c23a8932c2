"""LeNet-5 (Caffe's) on MNIST, grown from a seed and pruned (NeST, Dai, Yin & Jha 2017).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/grow_and_prune.py --config=configs/mnist_lenet5_nest.py \
    --workdir=runs/lenet5_nest

Twenty to forty-five minutes on one CPU core. The expected sizes and test errors, and
those of the paper, are in results/nest.json.

The seed is LeNet-5 with three tenths of its feature maps, a seventh of its neurons and
a fifth of its connections. All training images are used, with affine distortions.
Pruning has one target size per layer, because the goal includes operations and a weight
of the first convolution is used at 576 positions.

Variants, as in `--config=configs/mnist_lenet5_nest.py:structured`: the default;
structured (removes whole feature maps and neurons, for speed); prune_only (the control:
a dense LeNet-5, trained for as many epochs as the seed and its growth, and pruned by
the same rounds); smaller (goes on to 108 times fewer parameters).
"""

from ml_collections import config_dict

from sparsejax.experiments.nest import default_config

VARIANTS = ("", "structured", "prune_only", "smaller")


def get_config(variant: str = "") -> config_dict.ConfigDict:
  if variant not in VARIANTS:
    known = ", ".join(VARIANTS[1:])
    raise ValueError(f"variant must be empty or one of {known}; got {variant!r}")
  c = default_config()
  c.dataset = "mnist"
  c.validation_fraction = 0.0
  c.augmentation = "affine_strong"
  c.inputs = "unit"
  c.model = "lenet5"
  c.features = (10, 25, 120)
  c.width_ratio = 0.6  # of these: 6-15-72
  c.density = 0.2
  c.target_error = 0.8
  c.growth_rounds = 5
  c.growth_epochs = 3
  c.growth_connections = 0.3
  c.growth_units = (1, 2, 10)
  c.pair_fraction = 0.02
  # The paper's result: 74.3x fewer parameters and 43.7x fewer operations. A weight of
  # the first convolution is used at 576 positions, one of the second at 64.
  c.milestones = ((46, 320, 4_650, 400),)
  c.milestone_rounds = (16,)
  c.prune_epochs = 3
  c.tune_epochs = 60
  c.learning_rate = 2e-3
  if variant == "structured":
    c.milestone_units = ((1, 5, 12, 60),)
  elif variant == "prune_only":
    c.features = (20, 50, 500)
    c.width_ratio = c.density = 1.0
    # All epochs of growth in the first round, which trains the network as it starts.
    c.growth_epochs = c.growth_epochs * c.growth_rounds
    c.growth_rounds = 1
  elif variant == "smaller":
    c.milestones = (*c.milestones, (40, 250, 3_220, 330))
    c.milestone_rounds = (16, 8)
  return c
