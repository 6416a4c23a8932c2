"""The documentation page about the results of `scripts.benchmarks.scaling`."""

import re
from typing import Any

COMPILED = (8, 16, 64)  # virtual devices
EXTRAPOLATED = (512, 4096)


def page(rows: list[dict[str, Any]]) -> str:
  """Formats docs/scaling.md from the rows of results/scaling.json."""
  values = {(r["case"], r["metric"]): r["mean"] for r in rows}
  lines = [
    "# Memory and traffic on many devices",
    "",
    "These numbers are read from compiled programs by",
    "`python -m scripts.benchmarks.scaling`; `results/scaling.json` has a note per",
    "row. The kernels of a transformer are sharded over all devices (fully sharded),",
    "in float32, with AdamW under `sparse_momentum`. The state consists of parameters,",
    "gradients, two moments and masks, without activations. The programs for",
    f"{_and(COMPILED)} devices were compiled for virtual devices; the numbers for",
    f"{_and(EXTRAPOLATED)} devices are extrapolated from these, per weight. A mask",
    "update is counted with the largest number of passes that it can have.",
    "",
    "| parameters | devices | state, GiB per device | with 1-bit masks"
    " | mask update, bytes per tensor | gathering a tensor, bytes |",
    "|---|---|---|---|---|---|",
  ]
  for case in dict.fromkeys(r["case"] for r in rows):
    match = re.fullmatch(r"transformer/parameters=(.+)/devices=(\d+)", case)
    if not match:
      continue
    get = lambda metric, case=case: values[case, metric]
    mark = "" if int(match[2]) in COMPILED else " (extrapolated)"
    lines.append(
      f"| {match[1]} | {int(match[2]):,}{mark} | {get('state_gib_per_device'):.3g}"
      f" | {get('state_gib_per_device_1bit_masks'):.3g}"
      f" | {get('mask_update_bytes_per_tensor'):,.0f}"
      f" | {get('gathered_update_bytes_per_tensor'):,.0f} |"
    )
  lines += [
    "",
    "A mask takes one byte per weight, of the 17 bytes of the state. One bit per",
    "weight, by `sj.packed_masks(tx)`, saves seven eighths of that. A step that only",
    "applies the mask then costs:",
    "",
    "| masks | bytes read and written per weight | operations per weight"
    " | scratch bytes per weight |",
    "|---|---|---|---|",
  ]
  for name in ("bytes", "bits"):
    get = lambda metric, name=name: values[f"masks/{name}", metric]
    lines.append(
      f"| {name} | {get('accessed_bytes_per_weight'):.3g}"
      f" | {get('operations_per_weight'):.3g}"
      f" | {get('scratch_bytes_per_weight'):.3g} |"
    )
  return "\n".join(lines) + "\n"


def _and(numbers: tuple[int, ...]) -> str:
  return ", ".join(f"{n:,}" for n in numbers[:-1]) + f" and {numbers[-1]:,}"
