import itertools

import numpy as np
import pytest

from sparsejax.theory import _golden_ratio as golden_ratio
from sparsejax.theory import _pick_one as pick_one
from sparsejax.theory import _strong as strong
from sparsejax.theory import _strong_network as strong_network
from sparsejax.theory import _subset_sum as subset_sum


def test_subset_sum_is_the_best_of_all_subsets():
  rng = np.random.default_rng(0)
  for n in (2, 3, 7, 10):
    samples, targets = rng.uniform(-1, 1, (40, n)), rng.uniform(-1, 1, 40)
    masks = subset_sum.subset_sum(samples, targets)
    subsets = np.array(list(itertools.product([0, 1], repeat=n)))
    best = np.abs(samples @ subsets.T - targets[:, None]).min(1)
    got = np.abs((samples * masks).sum(1) - targets)
    np.testing.assert_allclose(got, best, atol=1e-12)


def test_subset_sum_gains_a_bit_a_sample():
  rng = np.random.default_rng(1)
  samples, targets = rng.uniform(-1, 1, (600, 20)), rng.uniform(-0.5, 0.5, 600)
  counts = np.arange(8, 21, 2)
  medians = []
  for n in counts:
    masks = subset_sum.subset_sum(samples[:, :n], targets)
    medians.append(np.median(np.abs((samples[:, :n] * masks).sum(1) - targets)))
  samples_a_bit = -1 / np.polyfit(counts, np.log2(medians), 1)[0]
  assert 0.95 <= samples_a_bit <= 1.10


def test_success_rates_of_subset_sum():
  """Measured once on 1,000 targets: .775, .99 and .998 at eps = 1e-2."""
  rng = np.random.default_rng(2)
  samples, targets = rng.uniform(-1, 1, (1000, 16)), rng.uniform(-0.5, 0.5, 1000)
  for n, expected in ((8, 0.775), (12, 0.99), (16, 0.998)):
    masks = subset_sum.subset_sum(samples[:, :n], targets)
    rate = np.mean(np.abs((samples[:, :n] * masks).sum(1) - targets) <= 1e-2)
    assert abs(rate - expected) < 0.04


def test_staging_uses_more_samples_only_where_it_must():
  rng = np.random.default_rng(3)
  samples, targets = rng.uniform(-1, 1, (500, 20)), rng.uniform(-0.5, 0.5, 500)
  masks = subset_sum.staged_subset_sum(samples, targets, 1e-2, first=8)
  assert (np.abs((samples * masks).sum(1) - targets) <= 1e-2).all()
  assert 0.6 < np.mean(~masks[:, 8:].any(1)) < 0.9


def test_golden_ratio_bound_and_success_rate():
  """n = k ln(k / delta) samples hit all k intervals with chance 1 - delta."""
  rng = np.random.default_rng(4)
  eps = 1e-2
  k = golden_ratio.intervals_needed(eps)
  n = golden_ratio.samples_needed(eps, 0.05)
  assert (k, n) == (10, 53)
  power = rng.uniform(1, k + 1, (2000, n))
  samples, targets = golden_ratio.PHI**-power, rng.uniform(0, 1, 2000)
  masks = golden_ratio.golden_ratio(samples, targets, k)
  error = np.abs((samples * masks).sum(1) - targets)
  complete = np.array([len(set(row)) == k for row in power.astype(int)])
  assert (error[complete] <= golden_ratio.PHI**-k + 1e-12).all()
  inner = complete & (targets <= 1 - 0.34 * golden_ratio.PHI**-k)
  assert (error[inner] <= 0.66 * golden_ratio.PHI**-k + 1e-12).all()
  assert 0.945 < complete.mean() < 0.985


@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_errors_of_golden_ratio_do_not_add_up(spread):
  """The mean error is zero; taking what is not above the target shrinks by 0.34 u."""
  rng = np.random.default_rng(5)
  k, n = 8, 300
  unit = golden_ratio.PHI**-k
  targets = np.clip(spread * rng.normal(size=4000), -1, 1)
  signs = np.where(rng.random((4000, n)) < 0.5, -1, 1)
  samples = signs * golden_ratio.PHI ** -rng.uniform(1, k + 1, (4000, n))
  masks = golden_ratio.golden_ratio(samples, targets, k)
  outward = np.sign(targets) * ((samples * masks).sum(1) - targets)
  # Standard error of the mean: 0.23 u / sqrt(4000) = 0.004 u.
  assert abs(outward.mean()) < 0.04 * unit


def test_pick_one_takes_the_nearest():
  samples = np.array([[0.1, 0.5], [-0.3, 0.9]])
  masks = pick_one.pick_one(samples, np.array([0.4, -1.0]))
  assert masks.tolist() == [[False, True], [True, False]]


def small_net(bias=True):
  rng = np.random.default_rng(0)
  sizes = ((6, 8), (8, 5), (5, 3))
  layers = [{"kernel": rng.normal(size=s) / 3} for s in sizes]
  if bias:
    layers = [
      {**layer, "bias": 0.1 * rng.normal(size=layer["kernel"].shape[1])}
      for layer in layers
    ]
  return layers


@pytest.mark.parametrize("construction", strong.CONSTRUCTIONS)
def test_the_random_network_itself_matches_the_target(construction):
  target = small_net()
  ticket = strong.approximate(target, 0.01, 0.05, construction)
  assert ticket.max_weight_error <= 0.01
  x = np.random.default_rng(1).normal(size=(50, 6))
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  wide = strong_network.run_network(ticket.layers, x)
  np.testing.assert_allclose(
    wide, strong_network.run_effective(ticket.layers, x), rtol=1e-9, atol=1e-12
  )
  dense = x
  for i, layer in enumerate(target):
    dense = np.maximum(dense, 0) if i else dense
    dense = dense @ layer["kernel"] + layer["bias"]
  gap = np.linalg.norm(wide - dense, axis=1).max()
  assert 0 < gap <= ticket.sup_error_bound
  assert ticket.sup_error_found <= ticket.sup_error_bound
  assert ticket.sup_error_found > 0.5 * gap


def test_masks_and_seed_are_the_whole_ticket():
  """Weights redrawn from the seed, cut by the packed masks, give the chosen weights."""
  layer = strong.approximate(small_net(), construction="golden_ratio", seed=3).layers[0]
  for sign in range(2):
    a, b = strong_network.random_weights(layer.plan, sign, 4)
    assert (a < 0).all() if sign else (a > 0).all()
    mask = strong_network.unpack_masks(layer, sign, 4)
    chosen = np.where(mask, a[:, None] * b.astype(np.float64), 0).sum(0)
    np.testing.assert_allclose(chosen, layer.weights[sign, 4], rtol=1e-12)


def test_overheads_and_one_sign():
  target = small_net(bias=False)
  both = strong.approximate(target)
  one = strong.approximate(target, signed_inputs=False)
  assert one.overhead < both.overhead
  assert one.layers[0].weights.shape[0] == 1
  assert not one.layers[0].plan.bias
  counts = sum(int(np.unpackbits(x.masks).sum()) for x in one.layers)
  assert one.kept == counts / (48 + 40 + 15)
  with pytest.raises(ValueError, match="must not be negative"):
    strong_network.run_network(one.layers, -np.ones((1, 6)))


def test_samples_replace_those_that_delta_asks_for():
  target = small_net(bias=False)
  found = [
    strong.approximate(target, samples=n, signed_inputs=False) for n in (6, 12, 18)
  ]
  assert [ticket.overhead for ticket in found] == [6, 12, 18]
  errors = [ticket.max_weight_error for ticket in found]
  assert errors[0] > 0.01 > errors[2]
  for construction, samples in (("pick_one", 900), ("golden_ratio", 300)):
    ticket = strong.approximate(target, construction=construction, samples=samples)
    assert {layer.plan.samples for layer in ticket.layers} == {samples}
    assert ticket.max_weight_error <= 0.01


def test_samples_grow_with_the_logarithm_or_with_the_inverse():
  eps = [1e-1, 1e-2, 1e-3]
  assert [pick_one.samples_needed(e, 0.05) for e in eps] == [30, 300, 2996]
  assert [golden_ratio.samples_needed(e, 0.05) for e in eps] == [24, 53, 86]
  assert pick_one.samples_needed(0.01, 0.05 / 266_200) == 1549
  assert golden_ratio.samples_needed(0.01, 0.05 / 266_200) == 178


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: strong.approximate(small_net(), construction="magic"), "magic"),
    (lambda: strong.approximate(small_net(), eps=0), r"eps must be in \(0, 1\), got 0"),
    (lambda: strong.approximate([{"kernel": np.ones(3)}]), "dense layers"),
    (
      lambda: strong.approximate(small_net(), samples=1),
      "samples .* at least 2, got 1",
    ),
    (lambda: strong.approximate(small_net(), samples=41), "samples .* at most 40"),
    (lambda: subset_sum.subset_sum(np.ones((2, 41)), np.ones(2)), "2 to 40"),
    (lambda: subset_sum.subset_sum(np.ones((2, 4)), np.ones(3)), "shapes"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
