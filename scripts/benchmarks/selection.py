"""Times selection of the largest tenth against JAX's and NumPy's functions.

`jnp.sort` and `lax.top_k` take seconds where ours takes milliseconds, so they run for
one round each, after which their memory is freed; `numpy.partition` alternates with
ours.
"""

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from scripts.benchmarks import timing
from sparsejax.experiments import results

# Numbers of scores, and of timed rounds for ours and numpy's.
SIZES = {10**4: 201, 10**5: 101, 10**6: 31, 10**7: 11, 10**8: 3}
QUICK = {10**4: 11, 10**5: 3}


def cases(quick: bool) -> timing.Cases:
  """Returns one case per size."""

  def case(size: int, rounds: int):
    name = f"selection/n={size:.0e}".replace("e+0", "e")
    return name, lambda: rows(name, size, rounds)

  return dict(case(*item) for item in (QUICK if quick else SIZES).items())


def rows(case: str, size: int, rounds: int) -> list[dict]:
  """Returns seconds of ours, and ratios of the others to it."""
  scores = jax.random.normal(jax.random.key(0), (size // 1000, 1000))
  k, host = size // 10, np.asarray(scores).ravel()
  ours, compile_seconds = timing.compiled(sj.top_k_mask, scores, jnp.int32(k))
  k_traced = jnp.int32(k)
  found = timing.interleaved(
    {
      "ours": lambda: ours(scores, k_traced),
      "numpy": lambda: np.partition(host, size - k),
    },
    rounds,
  )
  mask = np.asarray(ours(scores, k_traced))
  assert mask.sum() == k
  own = float(np.median(found["ours"]))
  note = f"the best tenth of {size:,} floats, k traced; median of {rounds} rounds"
  table = [
    results.row(case, "seconds", own, note=note),
    results.row(
      case,
      "times_numpy_partition",
      timing.median_ratio(found["ours"], found["numpy"]),
      note=f"side by side, median of {rounds} rounds",
    ),
    results.row(
      case,
      "times_bandwidth_limit",
      own * timing.bandwidth() / (scores.nbytes + mask.nbytes),
      note=f"scores read once, masks written, at {timing.bandwidth() / 1e9:,.0f} GB/s",
    ),
    results.row(f"compile/{case}", "seconds", compile_seconds),
  ]
  others = {
    "jnp_sort": lambda s: s >= jnp.sort(s, axis=None)[-k],
    "lax_top_k": lambda s: s >= jax.lax.top_k(s.ravel(), k)[0][-1],
  }
  few = max(1, min(rounds // 10, 5))
  for name, function in others.items():
    program, _ = timing.compiled(function, scores)
    pair = timing.interleaved(
      {"other": lambda p=program: p(scores), "ours": lambda: ours(scores, k_traced)},
      few,
      warm_up=size < 10**7,
    )
    speedup = timing.median_ratio(pair["other"], pair["ours"])
    note = (
      f"side by side, {'median of ' if few > 1 else ''}{few} round{'s' * (few > 1)}"
    )
    table.append(results.row(case, f"speedup_over_{name}", speedup, note=note))
  return table
