"""A wide multilayer perceptron on MNIST, three layers of 2048, sparse by blocks.

Launch (after `python scripts/prepare_data.py mnist`):
  python scripts/train.py --config=configs/mnist_wide.py --workdir=runs/wide
  python scripts/train.py --config=configs/mnist_wide.py:dense --workdir=runs/dense

Takes minutes on a CPU. The products skip masked blocks of 128 x 128 in the forward and
backward pass; results/execution.json has the speed-up per step. The two kernels of 2048
x 2048 are sparse. The first kernel, with 784 inputs, is not a whole number of blocks
and stays dense, as does the last. For the same network with dense products:
`--config.execution=dense`; for masks without blocks, `--config.structure=any` as well.

Variants, as in `--config=configs/mnist_wide.py:sparse_evolution`: the names of
sparsejax/training/_methods.py that support structures; rigl is the default.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "rigl") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "mnist"
  c.model = "mlp"
  c.model_kwargs = config_dict.ConfigDict({"features": (2048, 2048, 2048)})
  c.density = 0.1
  c.learning_rate = 0.05
  c.lr_schedule = "cosine"
  c.weight_decay = 5e-4
  c.batch_size = 500
  c.num_epochs = 10
  training.use_method(c, variant)
  c.distribution = "uniform"
  c.update_every = 100
  if variant != "dense":
    # Without it a tenth of the weights shrinks the signal by 3 per layer, and training
    # begins slowly.
    c.rescale_start = True
    c.structure = "block"
    c.block = 128
    c.execution = "sparse"
  return c
