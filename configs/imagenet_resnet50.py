r"""ResNet-50 on ImageNet, by the recipes of RigL and of sparse momentum.

Launch (after `python scripts/prepare_data.py imagenet2012`, or with a TFDS folder that
contains it in the array_record format):
  python scripts/train.py --workdir=runs/imagenet \
    --config=configs/imagenet_resnet50.py --config.mesh.data=-1

For accelerators; with several processes, run the same command in each. Grain streams
the images from disk, and each process reads its own rows. The model computes in
bfloat16, with parameters, moments and batch statistics in float32. The learning rate is
linear in the batch size, 0.1 for 256 images (`--config.batch_size=1024
--config.learning_rate=0.4`).

Not run here. RigL's paper reports 74.6 % at density 0.2 and 72.0 % at 0.1 (75.1 and
73.0 % by ERK); sparse momentum's authors 74.91 % and 73.07 % with warm-up and label
smoothing; both 76.8 to 77.0 % dense.

Variants: the names of sparsejax/training/_methods.py; rigl is the default.
sparse_momentum uses its own recipe, all others RigL's. `--config.lr_schedule=cosine`
replaces the step schedule of either.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "rigl") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "imagenet2012"
  c.model = "resnet50"
  c.compute_dtype = "bfloat16"
  c.validation_fraction = 0.01
  c.eval_every = 5
  c.checkpoint_every = 1
  c.density = 0.2
  c.lr_schedule = "step"
  c.lr_decay_factor = 0.1
  c.warmup_epochs = 5.0
  c.momentum = 0.9
  c.weight_decay = 1e-4
  c.label_smoothing = 0.1
  c.num_epochs = 100
  c.update_every = 100
  training.use_method(c, variant)
  if variant == "sparse_momentum":
    c.batch_size = 256
    c.learning_rate = 0.1
    c.lr_decay_epochs = (30, 60, 90)
    c.drop_fraction = 0.2
    c.update_every = 5_004  # an epoch: 1,281,167 images
  else:
    c.batch_size = 4_096
    c.learning_rate = 1.6
    c.lr_decay_epochs = (30, 70, 90)
  if variant == "rigl":
    c.end_fraction = 0.78  # 25,000 of its 32,000 steps
  return c
