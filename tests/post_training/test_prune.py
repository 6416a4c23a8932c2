"""One-shot pruning against a float64 reference, layer by layer."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sparsejax as sj
from sparsejax import post_training

KEYS = jax.random.split(jax.random.key(0), 8)


def two_layers():
  """Inputs that depend on each other, as a network's do."""
  mix = jax.random.normal(KEYS[0], (8, 8))
  xs = [jax.random.normal(k, (40, 8)) @ mix + 0.3 for k in KEYS[1:3]]
  params = {
    "a": {"kernel": jax.random.normal(KEYS[3], (8, 12)), "bias": jnp.full((12,), 0.1)},
    "b": {"kernel": jax.random.normal(KEYS[4], (12, 4)), "bias": jnp.zeros((4,))},
  }
  return params, xs


def apply_fn(params, x):
  hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
  return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


# The reference: float64, loops, NumPy alone. Weights are (outputs, inputs).


def keep_best(scores, k):
  order = np.argsort(-scores.ravel(), kind="stable")
  mask = np.zeros(scores.size, bool)
  mask[order[:k]] = True
  return mask.reshape(scores.shape)


def keep_per_row(scores, k):
  return np.stack([keep_best(row, k) for row in scores])


def reference_sparse_gpt(w, h, density, n_m, block):
  """SparseGPT's Algorithm 1, a column at a time."""
  n = w.shape[1]
  h = h + 0.01 * np.trace(h) / n * np.eye(n)
  upper = np.linalg.cholesky(np.linalg.inv(h)).T
  w, mask = w.copy(), np.zeros(w.shape, bool)
  step = block if n_m is None else n_m[1]
  for start in range(0, n, step):
    end = min(start + step, n)
    scores = (w[:, start:end] / np.diag(upper)[None, start:end]) ** 2
    if n_m is None:
      mask[:, start:end] = keep_best(scores, round(density * scores.size))
    else:
      mask[:, start:end] = keep_per_row(scores, n_m[0])
    for i in range(start, end):
      error = np.where(mask[:, i], 0, w[:, i]) / upper[i, i]
      w[:, i:] -= np.outer(error, upper[i, i:])
  return np.where(mask, w, 0), mask


def reference_obs(w, h, k):
  """ExactOBS's deletion order of every row; the least squares of the live weights."""
  rows, n = w.shape
  h = h + 0.01 * np.trace(h) / n * np.eye(n)
  scores = np.zeros(w.shape)
  for r in range(rows):
    row, live, worst = w[r].copy(), list(range(n)), 0.0
    while live:
      inverse = np.linalg.inv(h[np.ix_(live, live)])
      cost = row[live] ** 2 / (2 * np.diag(inverse))
      q = int(np.argmin(cost))
      worst = max(worst, cost[q])
      scores[r, live[q]] = worst
      row[live] -= row[live[q]] / inverse[q, q] * inverse[q]
      live.pop(q)
  mask = keep_best(scores, k)
  new = np.zeros(w.shape)
  for r in range(rows):
    on = np.flatnonzero(mask[r])
    new[r, on] = np.linalg.solve(h[np.ix_(on, on)], h[on] @ w[r])
  return new, mask


def reference(method, w, x, density, n_m=None, block=128):
  w, x = w.astype(np.float64), x.astype(np.float64)
  gram, norms = x.T @ x, np.linalg.norm(x, axis=0)
  k = round(density * w.size)
  if method == "sparse_gpt":
    return reference_sparse_gpt(w, 2 / len(x) * gram, density, n_m, block)
  if method == "obs":
    return reference_obs(w, 2 / len(x) * gram, k)
  size = np.abs(w)
  share = size / size.sum(0, keepdims=True) + size / size.sum(1, keepdims=True)
  scores = {"magnitude": size, "wanda": size * norms, "ria": share * norms**0.5}[method]
  if n_m is not None:
    groups = scores.reshape(-1, n_m[1])
    mask = keep_per_row(groups, n_m[0]).reshape(w.shape)
  elif method == "wanda":
    mask = keep_per_row(scores, k // len(w))
  else:
    mask = keep_best(scores, k)
  return np.where(mask, w, 0), mask


@pytest.mark.parametrize(
  ("method", "n_m", "inputs"),
  [
    ("magnitude", None, "pruned"),
    ("wanda", None, "pruned"),
    ("wanda", (2, 4), "dense"),
    ("ria", None, "pruned"),
    ("sparse_gpt", None, "pruned"),
    ("sparse_gpt", None, "dense"),
    ("sparse_gpt", (2, 4), "pruned"),
    ("obs", None, "pruned"),
  ],
)
def test_masks_and_weights_are_those_of_a_float64_reference(method, n_m, inputs):
  params, xs = two_layers()
  pruned = post_training.prune(
    apply_fn,
    params,
    xs,
    0.5,
    method,
    None if n_m is None else sj.n_m(*n_m),
    inputs=inputs,
    block=4,
  )
  x = np.concatenate(xs).astype(np.float64)
  source = x
  for name, report in zip("ab", pruned.report, strict=True):
    w = np.asarray(params[name]["kernel"], np.float64).T
    new, mask = reference(method, w, source, 0.5, n_m, 4)
    np.testing.assert_array_equal(pruned.masks[name]["kernel"].T, mask, err_msg=name)
    np.testing.assert_allclose(
      pruned.params[name]["kernel"].T, new, rtol=2e-3, atol=2e-4
    )
    error = np.sum((source @ (new - w).T) ** 2) / np.sum((source @ w.T) ** 2)
    masked = np.sum((source @ (w * ~mask).T) ** 2) / np.sum((source @ w.T) ** 2)
    assert report.error == pytest.approx(error, rel=1e-3)
    assert report.masked_error == pytest.approx(masked, rel=1e-3)
    assert report.live == mask.sum() == int(pruned.masks[name]["kernel"].sum())
    used = new if inputs == "pruned" else w
    source = np.maximum(source @ used.T + np.asarray(params[name]["bias"])[None], 0)
  assert pruned.masks["a"]["bias"] is None
  np.testing.assert_array_equal(pruned.params["a"]["bias"], params["a"]["bias"])


def test_targets_of_the_dense_network_make_up_for_earlier_layers():
  params, xs = two_layers()
  kwargs = {"density": 0.4, "targets": "dense", "damping": 0.0}
  pruned = post_training.prune(apply_fn, params, xs, **kwargs)
  x = np.concatenate(xs).astype(np.float64)
  dense = np.asarray(params["a"]["kernel"], np.float64)
  layer = {k: np.asarray(v, np.float64) for k, v in pruned.params["a"].items()}
  wanted = np.maximum(x @ dense + layer["bias"], 0) @ np.asarray(params["b"]["kernel"])
  given = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
  for o, mask in enumerate(np.asarray(pruned.masks["b"]["kernel"]).T):
    best = np.linalg.lstsq(given[:, mask], wanted[:, o])[0]
    np.testing.assert_allclose(
      pruned.params["b"]["kernel"][mask, o], best, rtol=5e-3, atol=5e-4
    )
  plain = post_training.prune(apply_fn, params, xs, density=0.4)
  outputs = [
    np.concatenate([apply_fn(p, x) for x in xs])
    for p in (params, pruned.params, plain.params)
  ]
  lost = [np.sum((out - outputs[0]) ** 2) for out in outputs]
  assert lost[1] < lost[2]


def test_sparse_gpt_keeps_exact_counts_where_blocks_do_not_divide():
  params, xs = two_layers()
  # 96 and 48 weights in blocks of 5 columns; each block's own rounding would lose some.
  for density in (0.3, 0.37, 0.61):
    pruned = post_training.prune(apply_fn, params, xs, density, block=5)
    live = [int(pruned.masks[name]["kernel"].sum()) for name in "ab"]
    assert (
      live == np.asarray(sj.uniform({"a": (8, 12), "b": (12, 4)}, density)).tolist()
    )


def test_weights_shared_by_two_products_are_pruned_for_both():
  x = jax.random.normal(KEYS[0], (50, 6))
  params = {"w": jax.random.normal(KEYS[1], (6, 6)), "v": jnp.eye(6) + 0.1}

  def shared(params, x):
    return jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]) @ params["w"]

  pruned = post_training.prune(shared, params, [x], 0.5, "wanda")
  second = jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"])
  both = np.concatenate([x, second])
  w = np.asarray(params["w"]).T
  mask = keep_per_row(np.abs(w) * np.linalg.norm(both, axis=0), 3)
  np.testing.assert_array_equal(pruned.masks["w"].T, mask)
  # The layer between them saw the first use as pruned.
  hidden = jnp.tanh(x @ pruned.params["w"])
  scores = np.abs(np.asarray(params["v"]).T) * np.linalg.norm(hidden, axis=0)
  np.testing.assert_array_equal(pruned.masks["v"].T, keep_per_row(scores, 3))


def test_attention_kernels_and_stacked_layers_are_pruned_along_their_inputs():
  params = {
    "qkv": jax.random.normal(KEYS[0], (2, 8, 2, 4)),
    "out": jax.random.normal(KEYS[1], (2, 2, 4, 8)),
  }

  def attention(params, x):
    def body(h, p):
      mixed = jnp.einsum("sd,dhe->she", h, p["qkv"])
      return h + jnp.einsum("she,hed->sd", jnp.tanh(mixed), p["out"]), None

    return lax.scan(body, x, params)[0]

  x = jax.random.normal(KEYS[2], (64, 8))
  pruned = post_training.prune(
    attention, params, [x], structure=sj.n_m(1, 4), density=0.25
  )
  names = [layer.name for layer in pruned.report]
  assert names == ["qkv[0]", "out[0]", "qkv[1]", "out[1]"]
  groups = pruned.masks["qkv"].reshape(2, 2, 4, 8).sum(2)
  assert np.all(groups == 1)
  groups = pruned.masks["out"].reshape(2, 2, 4, 8).sum(2)
  assert np.all(groups == 1)
  # A layer's own least squares: nothing that keeps the mask does better by much.
  assert all(layer.error < layer.masked_error for layer in pruned.report)


def test_blocks_are_whole_and_their_weights_compensated():
  params, xs = two_layers()
  pruned = post_training.prune(apply_fn, params, xs, structure=sj.block((4, 2)))
  for name, report in zip("ab", pruned.report, strict=True):
    mask = np.asarray(pruned.masks[name]["kernel"])
    rows, columns = mask.shape
    blocks = mask.reshape(rows // 4, 4, columns // 2, 2).sum((1, 3))
    assert set(blocks.ravel()) == {0, 8}
    assert mask.sum() == report.live == mask.size // 2 // 8 * 8
    assert report.error < report.masked_error


def test_bfloat16_weights_and_activations():
  params, xs = two_layers()
  low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, xs))
  pruned = post_training.prune(apply_fn, *low, 0.5)
  for name in "ab":
    kernel, mask = pruned.params[name]["kernel"], pruned.masks[name]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert mask.sum() == mask.size // 2
    assert np.all((kernel != 0) <= mask)
  assert all(0 < layer.error < 0.2 for layer in pruned.report)


def test_grouped_convolutions_keep_exact_counts():
  conv = lambda p, x: lax.conv_general_dilated(
    x,
    p["w"],
    (1, 1),
    "SAME",
    feature_group_count=4,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  params = {"w": jax.random.normal(KEYS[0], (3, 3, 1, 4))}
  x = jax.random.normal(KEYS[1], (4, 6, 6, 4))
  for method in ("wanda", "sparse_gpt"):
    pruned = post_training.prune(conv, params, [x], 1 / 3, method)
    assert pruned.masks["w"].sum() == 12
    if method == "wanda":
      assert np.all(pruned.masks["w"].sum((0, 1, 2)) == 3)


def test_distributions_and_a_function_that_breaks_its_promise():
  params, xs = two_layers()
  owl = post_training.owl(apply_fn, params, xs, threshold=2.0, spread=0.2)
  pruned = post_training.prune(apply_fn, params, xs, 0.4, "wanda", distribution=owl)
  live = [layer.live for layer in pruned.report]
  assert sum(live) == round(0.4 * (96 + 48))
  w = [np.asarray(params[name]["kernel"]).T for name in "ab"]
  x = np.concatenate(xs)
  hidden = np.asarray(jax.nn.relu(x @ w[0].T + 0.1))
  outliers = []
  for weight, inputs in zip(w, (x, hidden), strict=True):
    scores = np.abs(weight) * np.linalg.norm(inputs, axis=0)
    outliers.append(np.mean(scores > 2 * scores.mean()))
  best = int(np.argmax(outliers))
  assert pruned.report[best].density > 0.4 > pruned.report[1 - best].density
  with pytest.raises(ValueError, match=r"sum to 72, 0.5 of 144 weights, got 66"):
    post_training.prune(
      apply_fn, params, xs, distribution=lambda s, d: np.array([40, 26])
    )


def test_a_directory_resumes_layer_by_layer(tmp_path):
  params, xs = two_layers()

  def scored(calls):
    def score(weights, statistics):
      calls.append(weights.shape)
      return jnp.abs(weights) * statistics.norms[:, None]

    return score  # another function each time, which must be traced again

  first, second = [], []
  whole = post_training.prune(
    apply_fn, params, xs, method=scored(first), directory=tmp_path
  )
  (tmp_path / "layer_00001.npz").unlink()
  again = post_training.prune(
    apply_fn, params, xs, method=scored(second), directory=tmp_path
  )
  assert (len(first), second) == (2, [(1, 4, 12)])
  for one, two in zip(
    jax.tree.leaves(whole[:2]), jax.tree.leaves(again[:2]), strict=True
  ):
    np.testing.assert_array_equal(one, two)
  assert again.report[0] == whole.report[0]
  with pytest.raises(ValueError, match=r"directory must be empty.*damping"):
    post_training.prune(
      apply_fn, params, xs, method=scored([]), directory=tmp_path, damping=0.1
    )


def test_numbers_that_are_not_finite_name_their_layer():
  params, xs = two_layers()
  bad = [xs[0].at[0, 0].set(jnp.nan), xs[1]]
  with pytest.raises(ValueError, match=r"inputs of every layer.*'a/kernel'"):
    post_training.prune(apply_fn, params, bad)
  params["b"]["kernel"] = params["b"]["kernel"].at[0, 0].set(jnp.inf)
  with pytest.raises(ValueError, match=r"weights of every layer.*'b/kernel'"):
    post_training.prune(apply_fn, params, xs)


@pytest.mark.parametrize(
  ("case", "method"),
  [
    ("one", "sparse_gpt"),
    ("dead", "sparse_gpt"),
    ("zero", "sparse_gpt"),
    ("one", "obs"),
    ("zero", "obs"),
    ("zero", "wanda"),
  ],
)
def test_singular_hessians_keep_exact_counts(case, method):
  params, xs = two_layers()
  xs = {
    "one": [xs[0][:1]],
    "dead": [x.at[:, ::2].set(0) for x in xs],
    "zero": [jnp.zeros_like(xs[0])],
  }[case]
  pruned = post_training.prune(apply_fn, params, xs, method=method)
  for name in "ab":
    mask = pruned.masks[name]["kernel"]
    assert mask.sum() == mask.size // 2
    assert np.all(np.isfinite(pruned.params[name]["kernel"]))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"density": 0}, r"density must lie in \(0, 1\], got 0"),
    ({"density": 1.5}, r"density must lie in \(0, 1\], got 1.5"),
    ({"method": "best"}, "method must be one of"),
    ({"structure": sj.n_m(2, 5), "density": None}, "multiple of 5.*'a/kernel'"),
    ({"structure": sj.n_m(1, 4)}, "density must be 0.25 or None"),
    ({"batches": []}, "batches must contain at least one batch, got none"),
    ({"inputs": "sparse"}, "inputs must be 'pruned' or 'dense'"),
    ({"targets": "net"}, "targets must be 'layer' or 'dense'"),
    ({"targets": "dense", "inputs": "dense"}, "targets must be 'layer' without"),
    ({"targets": "dense", "method": "wanda"}, "targets must be 'layer' without"),
    ({"group": "net", "method": "wanda"}, "group must be 'layer' or 'output'"),
    ({"group": "output"}, "group must be None for sparse_gpt"),
    ({"compensate": False}, "compensate must be True for sparse_gpt"),
    ({"damping": -1.0}, "damping must be at least 0"),
    ({"block": 0}, "block must be at least 1"),
    ({"where": "nothing"}, "where must select at least one leaf"),
    ({"apply_fn": lambda p, x: x}, "apply_fn must multiply its inputs"),
    ({"distribution": lambda s, d: np.array([72, 0])}, "leave every layer a weight"),
    ({"structure": sj.n_m(2, 4), "distribution": sj.erk}, "distribution must be unif"),
    ({"structure": sj.block((4, 4)), "density": 0.05}, "asks for 7 weights, got 32"),
    ({"structure": sj.constant_fan_in(), "density": 0.05}, "for 7 weights, got 16"),
  ],
)
def test_bad_input_is_refused_before_work_is_done(change, message, monkeypatch):
  params, xs = two_layers()
  monkeypatch.setattr("sparsejax.post_training._prune._advance", None)
  monkeypatch.setattr("sparsejax.post_training._prune._statistics", None)
  arguments = {"apply_fn": apply_fn, "params": params, "batches": xs, **change}
  with pytest.raises(ValueError, match=message):
    post_training.prune(**arguments)


@pytest.mark.parametrize(
  "kernel",
  [
    lambda w: w / jnp.sqrt(jnp.sum(w**2)),
    lambda w: w.astype(bool).astype(w.dtype),
  ],
)
def test_kernels_that_depend_on_all_their_weights_are_refused(kernel):
  params, inputs = {"w": jnp.ones((4, 3))}, jnp.ones((8, 4))
  with pytest.raises(ValueError, match="'w', which prune cannot follow through"):
    post_training.prune(lambda p, x: x @ kernel(p["w"]), params, [inputs], 0.5, "wanda")


def test_weights_of_groups_without_inputs_stay_as_they_are():
  """Kept weights are fitted to the dense outputs, of which these have none."""
  inputs = jax.random.normal(jax.random.key(0), (64, 2, 4)).at[:, 1].set(0.0)
  params = {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 3))}
  pruned = post_training.prune(
    lambda p, x: jnp.einsum("bgi,gio->bgo", x, p["kernel"]),
    params,
    [inputs],
    0.75,
    targets="dense",
  )
  live = pruned.masks["kernel"][1]
  np.testing.assert_array_equal(
    pruned.params["kernel"][1][live], params["kernel"][1][live]
  )


def test_a_directory_is_not_resumed_by_another_function(tmp_path):
  params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
  inputs = jax.random.normal(jax.random.key(1), (16, 8))
  dense = lambda p, x: x @ p["w"]

  def prune(apply_fn, method):
    return post_training.prune(
      apply_fn, params, [inputs], 0.5, method, directory=tmp_path
    )

  score = functools.partial(post_training.ria, power=0.5)
  first = prune(dense, score)
  chex.assert_trees_all_equal(prune(dense, score).masks, first.masks)
  for apply_fn, method, differs in (
    (dense, functools.partial(post_training.ria, power=5.0), "method"),
    (dense, lambda w, statistics: -jnp.abs(w), "method"),
    (lambda p, x: jnp.tanh(x) @ p["w"], score, "network"),
  ):
    with pytest.raises(ValueError, match=f"directory must be empty.*{differs}"):
      prune(apply_fn, method)


def test_a_kernel_with_two_factors_is_refused():
  params = {"w": jax.random.normal(jax.random.key(0), (8, 6))}
  inputs = jax.random.normal(jax.random.key(1), (16, 8))
  two = lambda first: (
    lambda p, x: jnp.concatenate([x @ (p["w"] * first), x[:, ::-1] @ (p["w"] * 2.0)], 1)
  )
  assert post_training.prune(two(2.0), params, [inputs], 0.5).report
  with pytest.raises(ValueError, match="'w', which enters two products with different"):
    post_training.prune(two(10.0), params, [inputs], 0.5)
