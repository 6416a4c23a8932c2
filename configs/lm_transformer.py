"""A small language model over bytes, with dense MLPs or with mixtures of experts.

Launch:
  python scripts/train.py --config=configs/lm_transformer.py --workdir=runs/lm
  python scripts/train.py --config=configs/lm_transformer.py:rigl_moe --workdir=runs/moe

The text is Python's language reference, which is part of every Python installation:
nothing is downloaded. Attention and MLP kernels are sparse; embeddings, norms and gates
are dense. "accuracy" is that of the next byte, and the loss is in nats per byte.

Variants: the names of sparsejax/training/_methods.py; sparse_momentum is the default.
With the suffix `_moe`, each MLP is a sparsely gated mixture of four experts (Shazeer et
al. 2017) with one budget per expert. On a mesh the experts are sharded over the `model`
axis: `--config.mesh.data=2 --config.mesh.model=4`.
"""

from typing import Any

from ml_collections import config_dict

from sparsejax import training


def get_config(variant: str = "sparse_momentum") -> config_dict.ConfigDict:
  method, experts = variant.removesuffix("_moe"), variant.endswith("_moe")
  c = training.default_config()
  c.dataset = "text"
  c.model = "transformer"
  c.density = 0.2
  c.update_every = 100
  c.optimizer = "adamw"
  c.learning_rate = 2e-3
  c.lr_schedule = "cosine"
  c.warmup_epochs = 0.25
  c.weight_decay = 0.1
  c.batch_size = 32
  c.num_epochs = 5
  training.use_method(c, method)
  # All kernels except those of the gates, which are small.
  kwargs = {"where": r"kernel$|experts\d+/(up|down)$"}
  if experts:
    c.model_kwargs = {"num_experts": 4}
    kwargs["stacked"] = r"experts\d+/(up|down)$"
    mesh: Any = c.mesh
    mesh.rules = {r"experts\d+/(up|down)$": ("model", None, None)}
  c.method_kwargs = kwargs
  return c
