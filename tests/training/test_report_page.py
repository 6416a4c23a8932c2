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
from sparsejax.analysis import mask_image
from sparsejax.reports import _charts as report_charts
from sparsejax.reports import _images as report_images
from sparsejax.reports import _page as report_page
from sparsejax.reports import _run as report_run
from sparsejax.reports import _svg as report_svg
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _config as config_lib
from sparsejax.training import _environment as environment
from sparsejax.training import _errors as errors
from sparsejax.training import _metrics as metrics

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
  return root


@pytest.fixture(scope="module")
def pages(folder):
  every = [folder / "grid", folder / "lenet5"]
  return {
    "one": report_page.page(report_run.read([folder / "lenet5"])),
    "several": report_page.page(report_run.read(every)),
  }


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
  with pytest.raises(errors.WorkdirError, match="at most 1 runs; got 2"):
    report_run.read([folder / "grid"])


def test_a_run_without_a_checkpoint_or_environment_has_a_page(folder, tmp_path):
  bare = tmp_path / "bare"
  shutil.copytree(folder / "grid/rigl/seed=0", bare)
  shutil.rmtree(bare / "checkpoints")
  (bare / environment.FILE).unlink()
  page = report_page.page(report_run.read([bare]))
  assert "no checkpoint to read" in page
  assert "not noted by the version that trained it" in page


def test_the_page_says_what_the_run_came_to(pages):
  one = pages["one"]
  for part in ("LeNet-5 on MNIST", "96.00 %", "1 min 01 s", "431,080", "&lt;&amp;&gt;"):
    assert part in one
  for part in ("RigL", "SET", "(not finished)", "Exploration rate", "Turnover"):
    assert part in pages["several"]


def test_the_page_needs_nothing_else(pages):
  for page in pages.values():
    links = re.findall(r'(?:src|href)="(?!data:)|url\(|@import|https?://', page)
    assert not links
    assert len(page) < 300_000


def test_lines_are_where_their_values_are():
  line = report_svg.Series("a", np.array([0, 1]), np.array([0.0, 10.0]), "red")
  drawn = report_svg.chart("t", [line], limits=(0, 10))
  (path,) = re.findall(r'class="line"[^>]* d="([^"]+)"', drawn)
  bottom, top = report_svg.HEIGHT - 34, 10
  assert [float(y) for y in re.findall(r" ([\d.]+)", path)] == [bottom, top]
  assert "nothing recorded" in report_svg.chart("t", [])
  gaps = line._replace(y=np.array([np.nan, 1.0]))
  assert "<circle" in report_svg.chart("t", [gaps], log=True)


@pytest.mark.parametrize("low", [0.001, 3.0])
@pytest.mark.parametrize("high", [7.0, 91234.0])
def test_ticks_reach_over_the_range(low, high):
  for ticks in (report_svg.nice_ticks(low, high), report_svg.log_ticks(low, high)):
    assert ticks[0] <= low < high <= ticks[-1]
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 10


def test_pictures_show_what_is_live():
  mask = np.zeros((2, 2, 1, 3), bool)
  mask[0, 0, 0, 0] = mask[1, 1, 0, 2] = True
  grid = report_images.filters(np.full(mask.shape, -2.0), mask)
  assert np.argwhere(np.isfinite(grid)).tolist() == [[0, 0], [1, 7]]
  assert np.nanmin(grid) == np.nanmax(grid) == -1
  blocks = mask_image(np.eye(300, 5, dtype=bool))
  assert blocks.shape == (128, 5)
  np.testing.assert_allclose(blocks[:, 0].sum(), 0.5)  # one of two rows of a block
  assert report_images.png(grid).startswith("data:image/png;base64,")


def test_a_colour_a_run():
  assert len(set(report_charts.run_colors(12))) == 12


def _browser():
  found = os.environ.get("SPARSEJAX_BROWSER") or next(
    filter(None, map(shutil.which, BROWSERS)), None
  )
  if not found:
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
  return found


_PROBE = """<script>
window.onload = () => {
  const out = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, svg = page.querySelector("figure.chart svg");
    const box = svg.getBoundingClientRect();
    svg.dispatchEvent(new frame.contentWindow.PointerEvent("pointermove",
      {clientX: box.left + box.width / 2, clientY: box.top + 20}));
    const cut = [...page.querySelectorAll("figcaption, h1, h2, h3, .legend li, img")]
      .filter((e) => e.getBoundingClientRect().right > frame.width);
    out[frame.id] = {
      inner: frame.contentWindow.innerWidth,
      wide: page.documentElement.scrollWidth,
      cut: cut.length,
      columns: new Set([...page.querySelectorAll(".charts > figure")].map(
        (e) => e.getBoundingClientRect().left)).size,
      tip: page.getElementById("tip").textContent,
      paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      letters: parseFloat(box.width) / 340 * 12,
    };
  }
  document.getElementById("out").textContent = JSON.stringify(out);
};
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
    width = int(name.split("-")[1])
    assert seen["inner"] == width
    assert seen["wide"] <= width, "the page itself must not scroll sideways"
    assert seen["cut"] == 0
    assert seen["columns"] == (1 if width == 390 else 4)
    assert seen["letters"] > 9
    assert "%" in seen["tip"]
    assert (seen["paper"] == "rgb(20, 22, 27)") is dark
