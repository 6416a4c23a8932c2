"""Draws the results of pruning trained networks, from results/pretrained.json.

  python -m scripts.reproduce.pretrained.plot

Writes docs/assets/pretrained.png in a second.
"""

from absl import flags

from scripts import ROOT
from scripts.reproduce import plots
from scripts.reproduce.pretrained.cases import DENSITIES, METHODS
from sparsejax.analysis import COLORS, FAINT
from sparsejax.experiments import command_line, results

_RESULTS = flags.DEFINE_string(
  "results", str(ROOT / "results/pretrained.json"), "The results file."
)
_OUT = flags.DEFINE_string("out", str(ROOT / "docs/assets"), "Folder of the plot.")
NAMES = ("SparseGPT", "Wanda", "RIA", "magnitude")
STYLES = (1, 0, 2, 10)


def main(_):
  rows = {(r["case"], r["metric"]): r for r in results.read_rows(_RESULTS.value)}
  figure, panels = plots.axes(1, 2, width=5.0, height=3.6)
  for panel, (network, metric) in zip(
    panels,
    (
      ("minilm_l6", "cosine_to_dense"),
      ("byte_transformer", "perplexity_per_byte"),
    ),
    strict=True,
  ):
    for k, (method, name) in enumerate(zip(METHODS, NAMES, strict=True)):
      found = [rows[f"{network}/{d}/{method}", metric] for d in DENSITIES]
      panel.bar(
        [group + (k - 1.5) * 0.2 for group in range(len(found))],
        [row["mean"] for row in found],
        0.18,
        yerr=[row["sem"] or 0 for row in found],
        color=COLORS[STYLES[k]],
        label=name,
      )
    ticks = [d.replace("n_m=", "").replace("=", " ") for d in DENSITIES]
    panel.set_xticks(range(len(ticks)), ticks)
  left, right = panels
  # Networks that were fine-tuned after pruning by SparseGPT.
  for group, density in enumerate(DENSITIES):
    case = f"minilm_l6/{density}/sparse_gpt/fine_tuned"
    tuned = [row["mean"] for key, row in rows.items() if _is_cosine_of(case, *key)]
    label = "SparseGPT, fine-tuned" if group == 0 else None
    left.plot([group - 0.3] * len(tuned), tuned, "_", color="black", ms=12, label=label)
  left.set_ylim(0, 1.35)  # room for the legend
  left.set_yticks([0, 0.25, 0.5, 0.75, 1])
  left.set_ylabel("cosine to the dense embeddings")
  left.set_title("MiniLM-L6, 22.7M weights")
  left.legend(loc="upper right", fontsize=8, ncols=2)
  dense = rows["byte_transformer/dense", "perplexity_per_byte"]["mean"]
  right.axhline(dense, color=FAINT, lw=1, label="dense")
  right.set_ylabel("perplexity per byte")
  right.set_title("Byte transformer, .4M weights")
  right.legend(loc="upper left", fontsize=8)
  plots.save(figure, _OUT.value, "pretrained")


def _is_cosine_of(case: str, found: str, metric: str) -> bool:
  """Returns whether a row is the cosine of a case, or of one with more steps."""
  return metric == "cosine_to_dense" and found.split("/steps=")[0] == case


if __name__ == "__main__":
  command_line.run(main)
