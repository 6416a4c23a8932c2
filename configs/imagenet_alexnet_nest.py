"""AlexNet on ImageNet, grown from a seed and pruned (NeST, Dai, Yin & Jha 2017).

Launch (after `python scripts/prepare_data.py imagenet2012`):
  python scripts/grow_and_prune.py --config=configs/imagenet_alexnet_nest.py \
    --workdir=runs/alexnet_nest

For one GPU with 40 GB or more, by estimate: for lack of the data it was not run here,
and a test runs this config on small images. The paper grows 8.4M connections to 28.3M
and prunes them to 3.9M: 15.7x fewer parameters and 4.6x fewer operations at 0.02 points
less error than Caffe's 42.78 %.

The images are read as needed, with random crops and mirror images, and a fiftieth of
the training images is held out to measure the errors that steer the synthesis. After
pruning, partial-area convolution removes a tenth of the positions at which an input map
contributes to a feature map, in rounds of one percent.

Variants, as in `--config=configs/imagenet_alexnet_nest.py:connections`: the default;
connections (without partial areas).
"""

from ml_collections import config_dict

from sparsejax.experiments.nest import default_config

VARIANTS = ("", "connections")


def get_config(variant: str = "") -> config_dict.ConfigDict:
  if variant not in VARIANTS:
    known = ", ".join(VARIANTS[1:])
    raise ValueError(f"variant must be empty or one of {known}; got {variant!r}")
  c = default_config()
  c.dataset = "imagenet2012"
  c.validation_fraction = 0.02
  c.image_size = 227  # so that 6 x 6 positions are left before the dense layers
  c.model = "alexnet"
  c.features = (96, 256, 384, 384, 256, 4_096, 4_096)
  # Two thirds of the width with 30 % of the connections: 8.6M of them.
  c.width_ratio = 0.65
  c.density = 0.3
  c.target_error = 42.0
  c.growth_rounds = 12
  c.growth_epochs = 5
  c.growth_connections = 0.1
  c.growth_units = (2, 6, 8, 8, 6, 80, 80)
  c.milestones = (3_880_000,)
  c.milestone_rounds = (30,)
  c.prune_epochs = 2
  c.tolerated_error = 42.76
  c.area_rounds = 0 if variant == "connections" else 10
  c.tune_epochs = 30
  c.batch_size = 256
  c.learning_rate = 5e-4
  return c
