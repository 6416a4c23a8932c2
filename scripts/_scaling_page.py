"""The documentation page about the results of `scaling.py`."""

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
    "Made by `scripts/scaling.py` from what compiled programs say of themselves; see",
    "`results/scaling.json` for the command, and for each row's note. A transformer's",
    "kernels are cut over all devices (fully sharded), in float32, with AdamW under",
    "`sparse_momentum`; held are parameters, gradients, two moments and masks, not",
    f"activations. The programs of {_and(COMPILED)} devices were compiled, on virtual",
    f"ones; those of {_and(EXTRAPOLATED)} are extrapolated from these by weight.",
    "A mask update is counted with all the passes that it can have.",
    "",
    "| parameters | devices | held, GiB a device | with 1-bit masks"
    " | mask update, bytes a tensor | gathering a tensor, bytes |",
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
    "A mask takes a byte a weight, of 17 that are held. One bit a weight, by",
    "`sj.packed_masks(tx)`, saves seven eighths of that, and costs, a step that only",
    "applies the mask:",
    "",
    "| masks | bytes read and written a weight | operations a weight | scratch bytes a"
    " weight |",
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
