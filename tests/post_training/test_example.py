"""The example of a pretrained encoder, on a small random one."""

import flax.linen as nn
import jax
import numpy as np

from examples import prune_pretrained
from sparsejax import post_training

CONFIG = {
  **{"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2},
  **{"intermediate_size": 32, "num_hidden_layers": 1, "layer_norm_eps": 1e-12},
  **{"max_position_embeddings": 8, "type_vocab_size": 2},
}


def test_padding_counts_for_nothing_and_fine_tuning_keeps_masks():
  model = prune_pretrained.SentenceEncoder(nn.FrozenDict(CONFIG))
  tokens = np.random.default_rng(0).integers(1, 50, (16, 8)).astype(np.int32)
  mask = np.ones_like(tokens)
  mask[:, 5:] = 0
  params = jax.jit(model.init)(jax.random.key(0), tokens, mask)["params"]
  params = jax.tree.map(lambda a: 8 * np.asarray(a) if a.ndim > 1 else a, params)

  def apply_fn(params, inputs):
    return model.apply({"params": params}, *inputs)

  embed = jax.jit(apply_fn)

  # Neither embeddings nor statistics see what stands in the padding.
  other = np.where(mask, tokens, 7)
  one, two = (embed(params, (t, mask)) for t in (tokens, other))
  np.testing.assert_allclose(one, two, atol=1e-5)
  seen = [
    post_training.input_statistics(apply_fn, params, [batch], prune_pretrained.LAYERS)
    for batch in ((tokens, mask), (tokens[:, :5], mask[:, :5]))
  ]
  assert len(seen[0]) == 6
  for name, full in seen[0].items():
    np.testing.assert_allclose(full.gram, seen[1][name].gram, rtol=1e-4, atol=1e-3)

  batches = [(tokens, mask)]
  pruned = post_training.prune(
    apply_fn, params, batches, 0.5, "magnitude", where=prune_pretrained.LAYERS
  )
  with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
    tuned = prune_pretrained.fine_tune(apply_fn, params, pruned, batches, 40, 1e-2)
  dense = np.asarray(embed(params, batches[0]))
  before, after = (
    prune_pretrained.agreement(dense, np.asarray(embed(p, batches[0])))[0]
    for p in (pruned.params, tuned)
  )
  assert after > before + 0.05
  flat = jax.tree_util.tree_leaves_with_path(tuned)
  weights = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
  masks = jax.tree_util.tree_leaves_with_path(pruned.masks)
  assert len(masks) == 6
  for path, live in masks:
    assert np.all((weights[jax.tree_util.keystr(path)] != 0) <= live)
