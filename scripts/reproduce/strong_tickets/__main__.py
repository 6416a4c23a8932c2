"""Prunes random networks, without training, so that they match trained ones.

  python -m scripts.reproduce.strong_tickets --data_dir=... --out=plots

Takes about three minutes on two CPU cores. Expect every weight within 0.01, unchanged
accuracy, 30 to 60 random weights per weight by subset sum, and 1.03 samples per bit of
precision. `--cases=samples=20` is the published setting alone; rows of other cases are
then left unchanged.
"""

import re
import time

import numpy as np
from absl import flags

from scripts.reproduce import mnist_mlp, plots
from sparsejax.analysis import COLORS, FAINT
from sparsejax.experiments import command_line, results
from sparsejax.theory import (
  CONSTRUCTIONS,
  approximate,
  golden_ratio_samples_needed,
  intervals_needed,
  pick_one_samples_needed,
  run_effective,
  run_network,
  subset_sum,
)

DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of TFDS's data sets.")
OUT = flags.DEFINE_string("out", "plots", "Folder of the plot.")
RESULTS = flags.DEFINE_string(
  "results", "results/strong_tickets.json", "The results file."
)
CASES = flags.DEFINE_string("cases", "", "A regular expression of cases; default: all.")
QUICK = flags.DEFINE_bool("quick", False, "A 784-20-10 network and few samples.")

EPS, DELTA = 0.01, 0.05
PENSIA_SAMPLES = 20
PENSIA = (
  "Pensia et al. (2020), section 4 and its code: 784-500-10, 21.5 hours of Gurobi"
)


def main(_):
  train, test = mnist_mlp.mnist(DATA_DIR.value)
  rows = []
  nets = {"lenet300": (784, 300, 100, 10), "mlp500": (784, 500, 10)}
  if QUICK.value:
    nets = {"mlp20": (784, 20, 10)}
  for name, sizes in nets.items():
    # Constructions, and samples per weight; None for as many as DELTA asks for.
    kinds = [(construction, None) for construction in CONSTRUCTIONS]
    if name == "mlp500":
      kinds = [("subset_sum", None), ("subset_sum", PENSIA_SAMPLES)]
    kinds = [kind for kind in kinds if re.search(CASES.value, case_of(name, *kind))]
    if not kinds:
      continue
    params = mnist_mlp.train_mlp(sizes, *train, 0, 400 if QUICK.value else 4000)
    params = {n: {k: np.asarray(v) for k, v in p.items()} for n, p in params.items()}
    for construction, samples in kinds:
      rows += match(name, params, construction, test, samples)
  if not CASES.value:
    more, medians, needed = laws(200 if QUICK.value else 1000)
    rows += more
    plot(medians, needed)
  if not QUICK.value:
    rows = results.merge_with_existing(rows, RESULTS.value)
    results.write_results(RESULTS.value, "strong_tickets", rows)


def case_of(name, construction, samples):
  return f"{name}/{construction}" + (f"/samples={samples}" if samples else "")


def match(name, params, construction, test, fixed=None):
  """Returns rows of one net matched by one construction."""
  started, worked = time.time(), time.process_time()
  # The published network covers inputs that are not negative, such as pixels.
  ticket = approximate(
    params, EPS, DELTA, construction, samples=fixed, signed_inputs=fixed is None
  )
  minutes = (time.time() - started) / 60
  worked = (time.process_time() - worked) / 60
  # Compare the accuracy of the pruned random network with the trained one's.
  logits = run_effective(ticket.layers, test[0])
  accuracy = 100 * np.mean(logits.argmax(1) == test[1])
  change = accuracy - (100 - float(mnist_mlp.error_percent(params, *test)))
  if construction == "subset_sum":
    # Evaluate the wide random network itself, with its ReLUs, on a few images.
    wide = run_network(ticket.layers, test[0][:20])
    np.testing.assert_allclose(wide, logits[:20], rtol=1e-9, atol=1e-9)
  samples = [layer.plan.samples for layer in ticket.layers]
  print(
    f"{name} {construction}: {samples} samples per weight, largest error"
    f" {ticket.max_weight_error:.5f}, accuracy {accuracy:.2f} ({change:+.2f}), overhead"
    f" {ticket.overhead:.1f}, kept {ticket.kept:.2f}, sup error"
    f" {ticket.sup_error_found:.4f} <= {ticket.sup_error_bound:.3f},"
    f" {minutes:.2f} minutes, {worked:.2f} of processor time",
    flush=True,
  )
  published = name == "mlp500"
  errors = [
    np.abs(layer.weights - target).ravel()
    for layer, target in zip(ticket.layers, stacked(params), strict=True)
  ]
  above = int((np.concatenate(errors) > EPS).sum())
  if fixed:
    note = f"eps {EPS}; {samples} samples per weight; inputs that are not negative"
  else:
    note = (
      f"eps {EPS}, delta {DELTA} for the net, {samples} samples per weight and sign;"
      " both signs in the first layer, so that the whole unit ball is covered"
    )

  def row(metric, value, paper=None):
    paper = paper if published else None
    return results.row(
      case_of(name, construction, fixed),
      metric,
      value,
      paper=paper,
      source=PENSIA if paper is not None else "",
      note=note,
    )

  return [
    row("max_weight_error", ticket.max_weight_error, 0.01),
    row("weights_above_eps", above),
    row("accuracy_change_points", change, 0.0),
    row("overhead_ratio", ticket.overhead, 21.0),
    row("kept_ratio", ticket.kept, 9.39),
    row("sup_error_bound", ticket.sup_error_bound),
    row("sup_error_found", ticket.sup_error_found),
    row("minutes", minutes, 21.5 * 60),
    row("processor_minutes", worked),
  ]


def stacked(params):
  """Returns each layer's kernel with its bias as the last row."""
  return [np.concatenate([p["kernel"], p["bias"][None]]) for p in params.values()]


def laws(targets):
  """Returns the median error by samples, success rates, and samples by precision."""
  rng = np.random.default_rng(0)
  goals = rng.uniform(-0.5, 0.5, targets)
  counts = list(range(4, 17 if QUICK.value else 23))
  samples = rng.uniform(-1, 1, (targets, counts[-1]))
  # Error of the best subset sum, by the number of samples.
  errors = {}
  for n in counts:
    masks = subset_sum(samples[:, :n], goals)
    errors[n] = np.abs((samples[:, :n] * masks).sum(1) - goals)
  medians = {n: float(np.median(e)) for n, e in errors.items()}
  fitted = [n for n in counts if n >= 8]
  # The error halves with every `slope` samples.
  slope = -1 / np.polyfit(fitted, np.log2([medians[n] for n in fitted]), 1)[0]
  print(f"subset sum: {slope:.3f} samples per bit", flush=True)
  note = f"{targets} targets on [-1/2, 1/2], samples on [-1, 1]"
  rows = [results.row("subset_sum", "slope", slope, note=f"samples per bit; {note}")]
  for eps in (1e-1, 1e-2, 1e-3):
    for n in (8, 12, 16):
      rate = float(np.mean(errors[n] <= eps))
      rows.append(
        results.row(f"subset_sum/eps={eps:g}/n={n}", "success_rate", rate, note=note)
      )
  # Samples that each construction needs for 95 % of the targets, by precision.
  all_eps = 10.0 ** -np.arange(1, 3.6, 0.5)
  needed = {name: [] for name in CONSTRUCTIONS}
  for eps in all_eps:
    enough = [n for n in counts if np.mean(errors[n] <= eps) >= 0.95]
    needed["subset_sum"].append(enough[0] if enough else np.nan)
    n = 3 * pick_one_samples_needed(eps, DELTA)
    first = [first_hit(np.abs(rng.uniform(-1, 1, n) - g) <= eps) for g in goals]
    needed["pick_one"].append(np.quantile(first, 0.95))
    k = intervals_needed(eps)
    n = 3 * golden_ratio_samples_needed(eps, DELTA)
    drawn = rng.integers(0, k, (targets, n))
    first = [max(first_hit(row == i) for i in range(k)) for row in drawn]
    needed["golden_ratio"].append(np.quantile(first, 0.95))
  # Fit powers of log(1 / eps), and straight lines in it.
  logs = np.log(1 / all_eps)
  for name, values in needed.items():
    values = np.array(values, float)
    ok = np.isfinite(values)
    power = np.polyfit(logs[ok], np.log(values[ok]), 1)[0]
    line = np.corrcoef(logs[ok], values[ok])[0, 1] ** 2
    print(f"{name}: samples ~ (1/eps)^{power:.2f}; linear in log: r^2 {line:.4f}")
    rows.append(results.row(f"{name}/growth", "power_of_inverse_eps", power))
    rows.append(results.row(f"{name}/growth", "r_squared_of_line_in_log", line))
    for eps, value in zip(all_eps[ok], values[ok], strict=True):
      rows.append(results.row(f"{name}/eps={eps:.2g}", "samples_for_95_percent", value))
  return rows, medians, (all_eps, needed)


def first_hit(hits):
  return int(np.argmax(hits)) + 1 if hits.any() else len(hits)


def plot(medians, needed):
  figure, (left, right) = plots.axes(1, 2, width=5.2, height=4.0)
  counts = np.array(list(medians))
  left.plot(counts, list(medians.values()), "o", ms=5, color=COLORS[0])
  left.plot(counts, 2.0 ** (-counts / 1.03), "-", lw=1, color=FAINT)
  left.annotate(
    "$2^{-n/1.03}$",
    (counts[-5], 2.0 ** (-counts[-5] / 1.03)),
    xytext=(8, 8),
    textcoords="offset points",
    color=FAINT,
  )
  left.set(yscale="log", xlabel="samples n", ylabel="median error of the best subset")
  left.set_title("Subset sum gains one bit per sample")
  all_eps, values = needed
  labels = {
    "subset_sum": "subset sum (Pensia et al.)",
    "pick_one": "pick one (Malach et al.)",
    "golden_ratio": "golden ratio (Orseau et al.)",
  }
  for color, (name, label) in zip(COLORS, labels.items(), strict=False):
    right.plot(1 / all_eps, values[name], "o-", ms=5, color=color, label=label)
  right.plot(1 / all_eps, 3 / all_eps, ":", color=FAINT, label="ln(20) / ε")
  right.set(xscale="log", yscale="log", xlabel="1 / ε")
  right.set_ylabel("samples per weight, 95 % success")
  right.set_title("log(1/ε) against 1/ε")
  right.legend(loc="upper left")
  plots.save(figure, OUT.value, "strong_tickets")


if __name__ == "__main__":
  command_line.run(main)
