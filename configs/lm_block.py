"""A byte transformer of width 512, sparse by blocks of 64.

Launch:
  python scripts/train.py --config=configs/lm_block.py --workdir=runs/lm_block
  python scripts/train.py --config=configs/lm_block.py:dense --workdir=runs/lm_dense

The data are those of lm_transformer.py. Attention and MLP kernels are sparse, and their
products skip masked blocks in the forward and backward pass; results/execution.json has
the speed-up per step. For the same network with dense products:
`--config.execution=dense`; for masks without blocks, `--config.structure=any` as well.

Variants: the names of sparsejax/training/_methods.py that support structures; rigl is
the default.
"""

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "rigl") -> config_dict.ConfigDict:
  c = training.default_config()
  c.dataset = "text"
  c.model = "transformer"
  c.model_kwargs = config_dict.ConfigDict({"width": 512, "heads": 8})
  c.density = 0.1
  c.optimizer = "adamw"
  c.learning_rate = 1e-3
  c.lr_schedule = "cosine"
  c.warmup_epochs = 0.25
  c.weight_decay = 0.1
  c.batch_size = 16
  c.num_epochs = 5
  training.use_method(c, variant)
  c.distribution = "uniform"
  c.update_every = 100
  if variant != "dense":
    c.structure = "block"
    c.block = 64
    c.execution = "sparse"
  return c
