"""AlexNet on ImageNet, grown from a seed and pruned (NeST, Dai, Yin & Jha 2017).

For accelerators, and not for `scripts/grow_and_prune.py`, whose data sets must fit into
memory. This config gives the model and the plan, for use with an input pipeline:

  c = sparsejax.experiments.nest._config.complete(get_config())
  model = sparsejax.models.create(c.model, num_classes=1000, features=c.features)
  chain = sparsejax.growth.layers(model, (227, 227, 3))
  masks = sparsejax.growth.seed(chain, c.width_ratio, c.density, key)
  sparsejax.growth.synthesize(synthesis_config.plan(c), actions, state)

with your own `growth.Actions` that train on the pipeline. Not run here. The paper grows
8.4M connections to 28.3M and prunes them to 3.9M: 15.7x fewer parameters and 4.6x fewer
operations at 0.02 points less error than Caffe's 42.78 %.
"""

from ml_collections import config_dict

from sparsejax.experiments.nest import default_config


def get_config() -> config_dict.ConfigDict:
  c = default_config()
  c.dataset = "imagenet2012"
  c.augmentation = "crop_flip"
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
  c.tune_epochs = 30
  c.batch_size = 256
  c.learning_rate = 5e-4
  return c
