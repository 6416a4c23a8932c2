"""Selection from a guess gives the masks of a full search, whatever the guess."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax.core import _warm_selection as warm_selection
from sparsejax.core._selection import select
from sparsejax.core._warm_selection import WarmStart, initial_warm_start, warm_select

WARM = jax.jit(warm_select)
FULL = jax.jit(lambda scores, k: select(scores, k, [None] * len(scores), [0, 0]))


def draws(kind):
  a, b = (
    jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(64, 40), (30, 7)])
  )
  if kind == "ties":
    a, b = jnp.round(2 * a), jnp.zeros_like(b)
  if kind == "broken":
    a = a.at[0, 0].set(jnp.nan).at[1, 1].set(-jnp.inf).at[2, 2].set(jnp.inf)
  return [a, b]


@pytest.mark.parametrize("kind", ["continuous", "ties", "broken"])
@pytest.mark.parametrize("k", [(0, 0), (1, 209), (1280, 105), (2560, 210), (2559, 1)])
@pytest.mark.parametrize("key", [0, 1, 1 << 31, 3_212_836_864, (1 << 32) - 1])
def test_masks_are_those_of_a_full_search(kind, k, key):
  scores, k = draws(kind), jnp.array(k, jnp.int32)
  for spacing in (1.0, 1e9):
    guess = WarmStart(jnp.full(2, key, jnp.uint32), jnp.full(2, spacing))
    masks, after = WARM(scores, k, guess)
    for got, want in zip(masks, FULL(scores, k), strict=True):
      np.testing.assert_array_equal(got, want)
    again, _ = WARM(scores, k, after)
    for got, want in zip(again, masks, strict=True):
      np.testing.assert_array_equal(got, want)


def test_scores_that_move_a_little_need_few_counts(monkeypatch):
  """The search is not entered, and the loop of counts ends early."""
  counted = []
  count = warm_selection.count

  def counting(x):
    jax.debug.callback(lambda: counted.append(1))
    return count(x)

  monkeypatch.setattr(warm_selection, "count", counting)
  scores = [jnp.abs(jax.random.normal(jax.random.key(0), (300, 200)))]
  k = jnp.array([20_000], jnp.int32)
  step = jax.jit(lambda scores, guess: warm_select(scores, k, guess))
  guess, taken = initial_warm_start(1), []
  for seed in range(6):
    counted.clear()
    _, guess = jax.block_until_ready(step(scores, guess))
    jax.effects_barrier()
    taken.append(len(counted))
    scores = [
      s + 1e-3 * jax.random.normal(jax.random.key(seed), s.shape) for s in scores
    ]
  assert max(taken[2:]) <= 10, taken


def test_half_precision_and_vmap():
  a = jax.random.normal(jax.random.key(0), (3, 16, 40), jnp.bfloat16)
  k = jnp.array([[10], [320], [639]], jnp.int32)
  guess = jax.vmap(lambda _: initial_warm_start(1))(jnp.arange(3))
  [masks], _ = jax.jit(jax.vmap(lambda x, k, g: warm_select([x], k, g)))(a, k, guess)
  for x, n, mask in zip(a, k, masks, strict=True):
    np.testing.assert_array_equal(mask, select([x], n, [None], [0])[0])


def test_a_warm_start_is_float32_in_x64_mode():
  with jax.enable_x64(True):
    assert initial_warm_start(2).spacing.dtype == jnp.float32
