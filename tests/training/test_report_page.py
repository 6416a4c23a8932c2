"""The HTML report: what it says of runs, and how a browser shows it."""

import html
import json
import os
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import models
from sparsejax.analysis import COLORS, mask_image
from sparsejax.reports import _charts as report_charts
from sparsejax.reports import _images as report_images
from sparsejax.reports import _page as report_page
from sparsejax.reports import _run as report_run
from sparsejax.reports import _tables as report_tables
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _environment as environment
from sparsejax.training import _errors as errors
from sparsejax.training import _metrics as metrics
from sparsejax.training import config as config_lib

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _run(path, seeds=1, finished=True, **fields):
  """A directory as a run leaves it, of a network that was never trained."""
  fields = {"dataset": "digits", "model_kwargs": {"features": (16,)}, **fields}
  config = config_lib.complete({"density": 0.25, "num_seeds": seeds, **fields})
  stamp = config_lib.to_json(config)
  path.mkdir(parents=True)
  (path / "config.json").write_text(json.dumps(stamp))
  shape = (28, 28, 1) if config.dataset == "mnist" else (8, 8, 1)
  model = models.create(config.model, 10, **config.model_kwargs)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes["params"]
  )
  masks = jax.tree.map(
    lambda p: rng.permutation(p.size).reshape(p.shape) < p.size // 4, params
  )
  masks = {name: {"kernel": layer["kernel"]} for name, layer in masks.items()}
  tree: dict = {"params": params, "opt_state": {"masks": masks}}
  if seeds > 1:
    tree = jax.tree.map(lambda x: np.stack([x] * seeds), tree)
  saved = checkpoint.Checkpoints(path, stamp)
  saved.save(40, tree, {})
  saved.close()
  live = {
    "/".join(k.key for k in name): int(mask.sum())
    for name, mask in jax.tree_util.tree_leaves_with_path(masks)
  }
  many = lambda x: x if seeds == 1 else np.full(seeds, x)
  with metrics.Writer(path, 0) as writer:
    for i in range(5):
      writer.write(
        10 * i,
        {"epoch": i, "validation_accuracy": many(0.5 + 0.1 * i), "density": many(0.25)}
        | {"validation_loss": many(2.0 - 0.3 * i)}
        | {"live": {name: many(n + i) for name, n in live.items()}},
      )
      writer.write(
        10 * i + 10,
        {"epoch": i + 1, "train_accuracy": many(0.6), "train_loss": many(0.1)}
        | {"learning_rate": 0.1, "density": many(0.25), "steps_per_second": 9.0}
        | {"dropped": many(5), "grown": many(5), "explored": many(0.25 + 0.1 * i)},
      )
  part = {"step": 0, "command": "python scripts/train.py <&>", "commit": "abc"}
  noted = {"image_shape": shape, "num_classes": 10, "parts": [part]}
  (path / environment.FILE).write_text(json.dumps(noted))
  if finished:
    summary = {"test_error_percent": [4.0] * seeds, "test_loss": [0.1] * seeds}
    summary |= {"seconds": 61.0, "skipped_steps": [0] * seeds, "step": 50}
    (path / "summary.json").write_text(json.dumps(summary))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("reports")
  _run(root / "grid/rigl/seed=0", method="rigl")
  _run(root / "grid/set/seed=0", seeds=2, finished=False, method="sparse_evolution")
  _run(root / "lenet5", dataset="mnist", model="lenet5", model_kwargs={})
  for seed in range(3):
    _run(root / f"cells/rigl/seeds={seed}", method="rigl", seed=seed)
  _run(root / "cells/block/seeds=0", structure="block", block=8, method="rigl")
  return root


@pytest.fixture(scope="module")
def pages(folder):
  every = [folder / "grid", folder / "lenet5"]
  return {
    "one": report_page.page(report_run.read([folder / "lenet5"])),
    "several": report_page.page(report_run.read(every)),
  }


def _groups(*folders):
  return report_run.group(report_run.read(folders))


def _traces(chart, band=False):
  skip = "skip" if band else None
  return {t.name: t for t in chart.figure.data if t.hoverinfo == skip}


def test_a_run_is_read_from_its_directory(folder):
  (run,) = report_run.read([folder / "lenet5"])
  assert (run.name, run.step, run.image_shape) == ("lenet5", 40, (28, 28, 1))
  kernels = ["conv1/kernel", "conv2/kernel", "dense1/kernel", "dense2/kernel"]
  assert list(run.masks) == kernels
  assert run.sizes["conv1/kernel"] == 500
  assert run.live["conv1/kernel"] == 125
  assert run.uses["conv1/kernel"] == 576
  inference, training = report_run.costs(run)
  assert 0.25 <= inference < 0.26
  assert training > inference  # sparse momentum takes dense gradients


def test_of_several_seeds_the_first_is_shown(folder):
  run = report_run.read([folder / "grid"])[1]
  assert run.masks["dense1/kernel"].shape == (64, 16)
  assert run.live["dense1/kernel"] == 64 * 16 // 4


def test_folders_are_looked_through_and_named_by_what_differs(folder):
  grid = report_run.read([folder / "grid", folder / "grid/rigl"])
  assert [run.name for run in grid] == ["rigl", "set"]


def test_what_is_no_run_is_refused(tmp_path, folder, monkeypatch):
  with pytest.raises(errors.WorkdirError, match=r"must hold a run .* got"):
    report_run.read([tmp_path])
  (tmp_path / "config.json").write_text('{"rounds": 3}')  # an experiment's
  (tmp_path / metrics.FILE).write_text("")
  with pytest.raises(errors.WorkdirError, match=r"must hold a run .* got"):
    report_run.read([tmp_path])
  monkeypatch.setattr(report_run, "MOST", 1)
  with pytest.raises(
    errors.WorkdirError, match="at most 1 runs, not counting their seeds; got 2"
  ):
    report_run.read([folder / "grid"])


def test_a_run_without_a_checkpoint_or_environment_has_a_page(folder, tmp_path):
  bare = tmp_path / "bare"
  shutil.copytree(folder / "grid/rigl/seed=0", bare)
  shutil.rmtree(bare / "checkpoints")
  (bare / environment.FILE).unlink()
  page = report_page.page(report_run.read([bare]))
  assert "no checkpoint to read" in page
  assert "not recorded by the version that trained it" in page


def test_runs_that_differ_in_their_seeds_are_averaged(folder):
  groups = _groups(folder / "cells")
  assert [(group[0].name, len(group)) for group in groups] == [
    ("block", 1),
    ("rigl", 3),
  ]
  assert [bool(run.masks) for run in groups[1]] == [True, False, False]
  for i, run in enumerate(groups[1]):
    for record in run.records:
      if "train_loss" in record:
        record["train_loss"] = float(i)
  loss = report_charts.curves(groups)[1]
  lines, bands = _traces(loss), _traces(loss, band=True)
  np.testing.assert_allclose(lines["rigl, training"].y, 1.0)
  assert set(bands) == {"rigl, training"}
  assert sorted(set(bands["rigl, training"].y)) == [0.0, 2.0]
  facts = report_tables.summary(groups)
  assert facts["test accuracy"] == [
    "96.00 %",
    "96.00 ± 0.00 %",
  ]
  assert facts["seeds"] == ["–", "3"]
  # The first record of a run, which includes compilation, is left out of step times.
  assert facts["step time"] == ["111 ms", "111 ms"]
  differ, same = report_tables.config(groups)
  assert set(differ) == {"structure", "block"}
  assert same["method"] == ["rigl"]


def test_live_blocks_are_counted(folder):
  (run,) = report_run.read([folder / "cells/block"])
  mask = np.zeros((16, 8), bool)
  mask[3, 2] = True  # one of two blocks
  run = run._replace(masks={"a": mask, "b": np.ones((2, 8, 8), bool)})
  assert report_run.live_blocks(run) == 3 / 4
  assert report_tables.summary([[run]])["live blocks"] == ["75 %"]
  other = run._replace(config={**run.config, "structure": "any"})
  assert report_run.live_blocks(other) is None


def test_all_accuracies_are_on_the_axis(folder):
  (group,) = _groups(folder / "lenet5")
  records = [
    {"epoch": i, "step": i, "validation_accuracy": value}
    for i, value in enumerate([0.05, 0.9, 0.99, 1.0])
  ]
  chart = report_charts.curves([[group[0]._replace(records=records)]])[0]
  (trace,) = chart.figure.data
  np.testing.assert_allclose(trace.y, [95, 10, 1, 0.01])
  axis = chart.figure.layout.yaxis
  assert (axis.type, axis.dtick) == ("log", 1)
  assert axis.range is None


def test_lines_have_the_colors_of_their_runs_and_epochs_are_integers(folder):
  groups = _groups(folder / "grid", folder / "lenet5")
  several = [*report_charts.curves(groups), *report_charts.masks(groups)]
  several += report_charts.layers(groups)
  for chart in several:
    for trace in chart.figure.data:
      number = trace.meta[0].removeprefix("run")
      color = trace.line.color if trace.line.color else trace.fillcolor
      assert color == COLORS[int(number)]
    epochs = chart.figure.layout.xaxis
    assert epochs.dtick == (None if epochs.type == "category" else 1)
  kinds = {trace.name: trace.line.dash for trace in several[0].figure.data}
  assert kinds["lenet5, validation"] == "solid"
  assert kinds["lenet5, training"] != "solid"


def test_what_fails_costs_its_part_of_the_page_only(folder, monkeypatch, caplog):
  caplog.set_level("WARNING", logger="absl")  # scripts may have raised it

  def fail(*args, **kwargs):
    raise TypeError("no such product")

  for place, name in (
    (report_run, "model_uses"),
    (report_run, "estimate_costs"),
    (report_charts, "masks"),
    (report_tables, "sizes"),
    (report_images, "pictures"),
  ):
    monkeypatch.setattr(place, name, fail)
  page = report_page.page(report_run.read([folder / "grid/rigl"]), script="")
  assert "96.00 %" in page
  assert "<figcaption>Error" in page
  assert "no such product" in caplog.text


def test_the_page_says_what_the_run_came_to(pages):
  one = pages["one"]
  for part in ("LeNet-5 on MNIST", "96.00 %", "1 min 01 s", "431,080", "&lt;&amp;&gt;"):
    assert part in one
  for part in ("RigL", "SET", "(not finished)", "Exploration rate", "Turnover"):
    assert part in pages["several"]


def test_the_page_needs_nothing_else(folder):
  page = report_page.page(report_run.read([folder / "grid"]), script="")
  assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|https?://', page)
  assert len(page) < 200_000


def test_pictures_show_what_is_live():
  mask = np.zeros((2, 2, 1, 3), bool)
  mask[0, 0, 0, 0] = mask[1, 1, 0, 2] = True
  grid = report_images.filters(np.full(mask.shape, -2.0), mask)
  assert np.argwhere(np.isfinite(grid)).tolist() == [[0, 0], [1, 7]]
  assert np.nanmin(grid) == np.nanmax(grid) == -2
  blocks = mask_image(np.eye(300, 5, dtype=bool))
  assert blocks.shape == (128, 5)
  np.testing.assert_allclose(blocks[:, 0].sum(), 0.5)  # one of two rows of a block
  assert report_images.png(grid / 2).startswith("data:image/png;base64,")


def _browser():
  found = os.environ.get("SPARSEJAX_BROWSER") or next(
    filter(None, map(shutil.which, BROWSERS)), None
  )
  if not found:
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
  return found


_PROBE = """<script>
window.onload = () => setTimeout(() => {
  const out = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    const plots = [...page.querySelectorAll(".js-plotly-plot")];
    const right = (e) => e.getBoundingClientRect().right;
    const parts = "figcaption, h1, h2, h3, pre, .legend button, img, svg";
    const cut = [...page.querySelectorAll(parts)].filter((e) => right(e) > frame.width);
    const scroll = page.querySelector(".scroll");
    scroll.scrollLeft = 99999;
    const first = plots[0];
    [...page.querySelectorAll(".legend button")].at(-1).click();
    out[frame.id] = {
      inner: view.innerWidth,
      wide: page.documentElement.scrollWidth,
      cut: cut.length,
      last: right(scroll.querySelector("tr").lastElementChild) - right(scroll),
      columns: new Set(plots.map((e) => e.getBoundingClientRect().left)).size,
      hidden: first.data.filter((t) => t.visible === false).map((t) => t.name),
      paper: view.getComputedStyle(page.body).backgroundColor,
      text: view.getComputedStyle(first.querySelector(".xtick text")).fill,
    };
  }
  document.getElementById("out").textContent = JSON.stringify(out);
}, 2000);
</script>"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page(pages, tmp_path, dark):
  browser = _browser()
  frames = "".join(
    f'<iframe id="{name}-{width}" width="{width}" height="900" style="border:0"'
    f' srcdoc="{html.escape(page, quote=True)}"></iframe>'
    for name, page in pages.items()
    for width in (390, 1280)
  )
  file = tmp_path / "frames.html"
  file.write_text(f'<meta charset="utf-8"><pre id="out"></pre>{frames}{_PROBE}')
  command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
  command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
  command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
  command += ["--virtual-time-budget=5000", "--window-size=1400,900", file.as_uri()]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert "Uncaught" not in done.stderr
  text = re.search(r'<pre id="out">(.+?)</pre>', done.stdout, re.DOTALL)
  assert text, done.stderr[-2000:]
  found = json.loads(html.unescape(text[1]))
  assert set(found) == {"one-390", "one-1280", "several-390", "several-1280"}
  for name, seen in found.items():
    page, width = name.split("-")
    assert seen["inner"] == int(width)
    assert seen["wide"] <= int(width), "the page itself must not scroll sideways"
    assert seen["cut"] == 0
    assert seen["last"] < 1, "the last column cannot be reached"
    assert seen["columns"] == (1 if width == "390" else 4)
    assert len(seen["hidden"]) == (1 if page == "one" else 3)
    assert all(name.endswith("training") for name in seen["hidden"])
    assert seen["paper"] == ("rgb(20, 22, 27)" if dark else "rgb(246, 247, 249)")
    assert seen["text"] == ("rgb(154, 163, 178)" if dark else "rgb(102, 112, 133)")
