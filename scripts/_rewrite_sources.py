"""Names the tables of published values in results/*.json.

  python -m scripts._rewrite_sources

Run once. The values stay; sources name their table, LeNet-300-100's seeds of a lost
commit and the read-out control of an untuned rate get cases that say so.
"""

import re

from scripts import ROOT
from scripts.reproduce.deep_cnn import cases
from scripts.reproduce.sparse_momentum.__main__ import PAPER, SOURCE
from sparsejax.experiments import results
from sparsejax.experiments.comparison import _published

DEEP = "Xiao et al. 2018, read off figure 1; its text has no accuracies"


def main() -> None:
  for path in sorted((ROOT / "results").glob("*.json")):
    rows = results.read_rows(path)
    for row in rows:
      if row["paper"] is None and "readout_only" not in row["case"]:
        continue
      if path.stem == "mnist_sparse_momentum":
        model, density, *_ = row["case"].split("/")
        name = PAPER[model][float(density.removeprefix("density="))][2]
        row["source"] = SOURCE.format(name)
      elif path.stem == "mnist_methods":
        own = row["model"], row["method"], row["density"]
        value, row["source"] = _published.accuracy("mnist", *own)
        assert value == row["paper"], row
      elif path.stem == "deep_cnn":
        if row["paper"] is not None:
          row["source"] = DEEP
        rate = f"readout_only/rate={cases.READOUT_RATE:g}"
        row["case"] = re.sub("readout_only$", rate, row["case"])
    results.write_results(path, path.stem, rows)


if __name__ == "__main__":
  main()
