import ctypes
import hashlib
import json
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from sparsejax.core import _epochs as epochs
from sparsejax.reports import _page as report_page
from sparsejax.reports import _run as report_run
from sparsejax.training import _checkpoint as checkpoint
from sparsejax.training import _environment as environment
from sparsejax.training import _errors as errors
from sparsejax.training import _interrupt as interrupt
from sparsejax.training import _loop as loop
from sparsejax.training import _metrics as metrics
from sparsejax.training import _progress as progress
from sparsejax.training import _result as result_lib
from sparsejax.training import _run as run_lib
from sparsejax.training import _step as step_lib
from sparsejax.training import _workdir as workdir_lib
from sparsejax.training import config as config_lib
from sparsejax.training import train_and_evaluate
from sparsejax.training.parallel import _replicas as replicas

pytestmark = pytest.mark.usefixtures("fast")


def _leaves(result):
  state = result.state._replace(key=jax.random.key_data(result.state.key))
  return [np.asarray(x) for x in jax.tree.leaves(state)]


def _records(path):
  """The metrics without what no two runs share."""
  return [
    {k: v for k, v in r.items() if k != "steps_per_second"} for r in metrics.read(path)
  ]


def _same(a, b):
  for x, y in zip(_leaves(a), _leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  np.testing.assert_array_equal(a.test_accuracy, b.test_accuracy)


class Scalars:
  """A writer as users write them: it has nothing but `write_scalars`."""

  def __init__(self):
    self.scalars = []

  def write_scalars(self, step, scalars):
    self.scalars.append((step, dict(scalars)))


class Media(Scalars):
  """A writer with the methods of CLU's for histograms and images."""

  def __init__(self):
    super().__init__()
    self.histograms, self.images = {}, {}

  def write_histograms(self, step, arrays):
    self.histograms[step] = arrays

  def write_images(self, step, images):
    self.images[step] = images


@pytest.fixture(scope="module")
def writers():
  return Scalars(), Media()


@pytest.fixture(scope="module")
def whole(prepared, tiny, writers, tmp_path_factory):
  """One run that nothing disturbs."""
  path = tmp_path_factory.mktemp("runs") / "whole"
  with pytest.MonkeyPatch.context() as m:
    m.setattr(run_lib, "prepare", prepared)
    return path, train_and_evaluate(tiny, path, verbose=False, writers=writers)


def _stop_at(monkeypatch, step, number=signal.SIGTERM):
  """Sends a signal as soon as that step is done."""
  update = progress.Progress.update

  def then_stop(self, count, **fields):
    if count == step and "loss" in fields:
      os.kill(os.getpid(), number)
    return update(self, count, **fields)

  monkeypatch.setattr(progress.Progress, "update", then_stop)


def test_a_run_learns_and_leaves_its_files(whole):
  path, result = whole
  assert result.finished
  assert result.step == result.total_steps == 160
  assert result.test_accuracy.shape == (1,)
  assert result.test_accuracy[0] > 0.85
  names = {p.name for p in path.iterdir()}
  assert names == {
    ".lock",
    "checkpoints",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "report.png",
    "summary.json",
  }
  assert (path / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  summary = json.loads((path / "summary.json").read_text())
  error = 100 * (1 - result.test_accuracy[0])
  np.testing.assert_allclose(summary["test_error_percent"], [error], atol=1e-5)


def test_writers_receive_the_records_densities_and_masks(whole, writers):
  path, result = whole
  plain, media = writers
  assert plain.scalars == media.scalars
  records = metrics.read(path)
  assert [step for step, _ in plain.scalars] == [r["step"] for r in records]
  first, last = plain.scalars[0][1], plain.scalars[-1][1]
  assert first["live/dense1/kernel"] == records[0]["live"]["dense1/kernel"]
  np.testing.assert_allclose(
    last["validation_loss"], records[-1]["validation_loss"], rtol=1e-6
  )
  assert list(media.histograms) == list(media.images) == [0, 40, 80, 120, 160]
  masks = run_lib.named(result_lib.first_seed(result)[1])
  densities = [np.mean(mask) for mask in masks.values()]
  np.testing.assert_allclose(media.histograms[160]["layer_densities"], densities)
  image = media.images[160]["masks/dense1/kernel"]
  assert (image.shape, image.dtype) == ((1, 64, 16, 1), np.float32)
  np.testing.assert_array_equal(image[0, ..., 0], masks["dense1/kernel"])


def test_a_report_reads_the_run(whole):
  path, result = whole
  (run,) = report_run.read([path])
  masks = run_lib.named(result_lib.first_seed(result)[1])
  assert (run.step, list(run.masks)) == (160, list(masks))
  for name, mask in masks.items():
    np.testing.assert_array_equal(run.masks[name], mask)
  page = report_page.page([run])
  assert f"{100 * result.test_accuracy[0]:.2f} %" in page


def test_masked_weights_are_exactly_zero_and_their_number_never_changes(whole):
  path, result = whole
  params, masks = result_lib.first_seed(result)
  for name, mask in run_lib.named(masks).items():
    weights = np.asarray(run_lib.named(params)[name])
    assert (weights[~np.asarray(mask)] == 0).all()
  totals = [sum(r["live"].values()) for r in metrics.read(path) if "live" in r]
  assert totals == [round(0.3 * (64 * 16 + 16 * 10))] * 5
  moved = [r["live"]["dense1/kernel"] for r in metrics.read(path) if "live" in r]
  assert len(set(moved)) > 1


def test_metrics_have_every_part_and_every_epoch(whole):
  records = metrics.read(whole[0])
  ends = [r["step"] for r in records if "train_loss" in r]
  assert ends == [e + s for e in (0, 40, 80, 120) for s in (15, 30, 40)]
  assert [r["step"] for r in records if "live" in r] == [0, 40, 80, 120, 160]
  assert records[-1]["validation_accuracy"] > 0.8
  assert {r["learning_rate"] for r in records if "train_loss" in r} == {0.1}


def test_turnover_adds_up(whole):
  """Sparse momentum grows what it drops; no mask update falls between some records."""
  records = [r for r in metrics.read(whole[0]) if "grown" in r]
  assert [r["grown"] for r in records] == [r["dropped"] for r in records]
  assert sum(r["grown"] for r in records) > 20
  # Masks change in steps 11, 21, ...: twice in a record's 15 steps or once.
  assert all(r["grown"] > 0 for r in records[:-1])


def test_the_environment_is_noted(whole):
  noted = environment.read(whole[0])
  assert noted["image_shape"] == [8, 8, 1]
  assert noted["num_classes"] == 10
  assert [part["step"] for part in noted["parts"]] == [0]
  assert {"commit", "date", "hardware"} <= set(noted["parts"][0])
  assert noted["parts"][0]["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("step", [15, 40, 110])
def test_a_stopped_run_ends_bit_for_bit_like_one_that_was_not(
  whole, tmp_path, monkeypatch, step, tiny
):
  with monkeypatch.context() as m:
    _stop_at(m, step)
    stopped = train_and_evaluate(tiny, tmp_path, verbose=False)
  assert not stopped.finished
  assert stopped.stopped_by is signal.SIGTERM
  assert stopped.step == step
  assert np.isnan(stopped.test_accuracy).all()
  assert not (tmp_path / "report.png").exists()
  resumed = train_and_evaluate(tiny, tmp_path, verbose=False)
  _same(resumed, whole[1])
  assert _records(tmp_path) == _records(whole[0])
  assert resumed.seconds > stopped.seconds


@pytest.mark.parametrize("step", [3, 38, 107])
def test_a_signal_between_two_records_stops_within_the_interval(
  whole, tmp_path, monkeypatch, step, tiny
):
  """Masks change in steps 11, 21, ...; records are at 15, 30, 40, 55, ..."""
  advance = replicas.advance

  def then_stop(run, state, train, order, count, stop, totals):
    if stop == step:
      os.kill(os.getpid(), signal.SIGTERM)
    return advance(run, state, train, order, count, stop, totals)

  with monkeypatch.context() as m:
    m.setattr(loop, "Pace", lambda: epochs.Pace(0.0))  # calls of one step
    m.setattr(replicas, "advance", then_stop)
    stopped = train_and_evaluate(tiny, tmp_path, verbose=False)
  assert (stopped.stopped_by, stopped.step) == (signal.SIGTERM, step)
  assert metrics.read(tmp_path)[-1]["step"] < step
  resumed = train_and_evaluate(tiny, tmp_path, verbose=False)
  _same(resumed, whole[1])
  assert _records(tmp_path) == _records(whole[0])


def test_an_interval_is_restored_with_seeds_and_non_finite_totals():
  rng = np.random.default_rng(0)
  masks = {"a": rng.random((2, 3, 5)) > 0.5, "b": rng.random((2, 7, 3)) > 0.5}
  params = jax.tree.map(lambda m: jnp.ones(m.shape), masks)
  opt_state = sj.with_masks(sj.dense(optax.sgd(0.1)).init(params), masks)
  keys = jax.random.split(jax.random.key(0), 2)
  state = step_lib.TrainState(jnp.int32(9), keys, params, {}, opt_state)
  arrays = np.array([0.1, np.nan], np.float32), np.array([3, 4]), np.array([8, 8])
  totals = step_lib.Totals(*(jnp.asarray(x) for x in arrays))
  before = loop.Interval(5, totals, jax.tree.map(np.logical_not, masks))
  text = json.dumps(loop.interval_to_json(before))
  after = loop.interval_from_json(json.loads(text), state)
  assert after.begin == 5
  for a, b in zip(jax.tree.leaves(before[1:]), jax.tree.leaves(after[1:]), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


def test_ctrl_c_stops_like_sigterm(tmp_path, monkeypatch, tiny):
  _stop_at(monkeypatch, 15, signal.SIGINT)
  # Shells start background jobs with SIGINT ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    result = train_and_evaluate(tiny, tmp_path, verbose=False)
    assert result.stopped_by is signal.SIGINT
    assert (tmp_path / "checkpoints" / "15").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_signal_before_the_first_step_is_no_crash(whole, tmp_path, monkeypatch, tiny):
  restore = checkpoint.Checkpoints.restore

  def then_stop(self, target):
    os.kill(os.getpid(), signal.SIGTERM)
    return restore(self, target)

  with monkeypatch.context() as m:
    m.setattr(checkpoint.Checkpoints, "restore", then_stop)
    result = train_and_evaluate(tiny, tmp_path, verbose=False)
  assert (result.stopped_by, result.step) == (signal.SIGTERM, 0)
  assert not metrics.read(tmp_path)
  train_and_evaluate(tiny, tmp_path, verbose=False)
  assert _records(tmp_path) == _records(whole[0])


def test_a_finished_run_is_shown_again(whole, tmp_path, capsys, tiny):
  path = tmp_path / "copy"
  shutil.copytree(whole[0], path)
  before = (path / "metrics.jsonl").read_bytes()
  result = train_and_evaluate(tiny, path)
  _same(result, whole[1])
  assert result.seconds < whole[1].seconds
  assert (path / "metrics.jsonl").read_bytes() == before
  shown = capsys.readouterr()
  assert "This run is finished" in shown.err
  assert "dense1/kernel" in shown.out
  assert f"{whole[1].test_accuracy[0]:.2%}".replace("%", " %") in shown.out
  assert "\x1b" not in shown.out


def test_a_damaged_checkpoint_costs_its_steps_and_says_so(
  whole, tmp_path, capsys, tiny
):
  path = tmp_path / "copy"
  shutil.copytree(whole[0], path)
  for file in (path / "checkpoints" / "160").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:10])
  result = train_and_evaluate(tiny, path)
  _same(result, whole[1])
  assert _records(path) == _records(whole[0])
  shown = capsys.readouterr().err
  assert "Warning: the checkpoint of step 160 is damaged" in shown
  assert "Resuming at step 120 of 160" in shown


def test_a_run_that_was_killed_between_checkpoints_goes_on(whole, tmp_path, tiny):
  """Metrics that came after the last checkpoint are written once, not twice."""
  path = tmp_path / "copy"
  shutil.copytree(whole[0], path)
  shutil.rmtree(path / "checkpoints" / "160")
  with open(path / "metrics.jsonl", "a") as file:
    file.write('{"step": 170, "train_l')
  result = train_and_evaluate(tiny, path, verbose=False)
  _same(result, whole[1])
  assert _records(path) == _records(whole[0])


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
  whole, tmp_path, tiny
):
  """The record of step 0 too is written once."""
  path = tmp_path / "copy"
  shutil.copytree(whole[0], path)
  shutil.rmtree(path / "checkpoints")
  (path / "checkpoints").mkdir()
  train_and_evaluate(tiny, path, verbose=False)
  assert _records(path) == _records(whole[0])


def test_a_run_that_was_killed_before_it_opened_its_checkpoints_is_known(
  tmp_path, monkeypatch, tiny
):
  class KilledError(BaseException):
    pass

  def killed(*args):
    (tmp_path / "checkpoints").mkdir()
    raise KilledError

  with monkeypatch.context() as m:
    m.setattr(checkpoint, "Checkpoints", killed)
    with pytest.raises(KilledError):
      train_and_evaluate(tiny, tmp_path, verbose=False)
  stamp = config_lib.to_json(config_lib.complete(tiny))
  workdir_lib.check(tmp_path, stamp)


def test_another_config_is_refused_with_the_difference(whole, tiny):
  path = whole[0]
  before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
  with pytest.raises(errors.WorkdirError) as e:
    train_and_evaluate({**tiny, "density": 0.2, "num_epochs": 5}, path)
  assert "density: 0.3 -> 0.2" in str(e.value)
  assert "num_epochs: 4 -> 5" in str(e.value)
  assert "seed" not in str(e.value)
  assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def test_a_directory_of_something_else_is_refused(tmp_path, tiny):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(
    errors.WorkdirError, match=r"holds checkpoints but no config.json"
  ):
    train_and_evaluate(tiny, tmp_path)
  (tmp_path / "config.json").write_text("no json")
  with pytest.raises(errors.WorkdirError, match=r"config.json cannot be read"):
    train_and_evaluate(tiny, tmp_path)


def test_a_directory_of_runs_is_refused(tmp_path, tiny):
  (tmp_path / "digits").mkdir()
  (tmp_path / "digits" / "config.json").write_text("{}")
  with pytest.raises(errors.WorkdirError, match=r"other runs, such as 'digits'.*/new"):
    train_and_evaluate(tiny, tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_a_workdir_that_cannot_be_made(tmp_path, tiny):
  (tmp_path / "file").write_text("")
  for bad in (tmp_path / "file", tmp_path / "file" / "below", ""):
    with pytest.raises(errors.WorkdirError, match="workdir must"):
      train_and_evaluate(tiny, bad)


def test_two_processes_cannot_share_a_workdir(tmp_path, tiny):
  with (
    workdir_lib.exclusive(tmp_path),
    pytest.raises(errors.WorkdirError, match="another process is training there"),
  ):
    train_and_evaluate(tiny, tmp_path)


@pytest.mark.parametrize(
  ("field", "value", "match"),
  [
    ("dataset", "mnist", "data set 'mnist' is not in"),
    ("batch_size", 2000, "batch_size must be at most the 1294 training images"),
    ("model", "lenet6", "model must be one of .*'lenet6'; did you mean 'lenet5'"),
    ("model_kwargs", {"feature": (3,)}, "model 'mlp'"),
    ("method_kwargs", {"zeta": 0.3}, "method_kwargs must be arguments"),
  ],
)
def test_what_cannot_run_leaves_the_workdir_free(tmp_path, field, value, match, tiny):
  config = {**tiny, "data_dir": str(tmp_path), field: value}
  with pytest.raises(errors.TrainingError, match=match):
    train_and_evaluate(config, tmp_path / "run")
  workdir_lib.check(tmp_path / "run", {"any": "config"})


def test_an_epoch_without_finite_gradients_ends_the_run(tmp_path, prepared, tiny):
  run = prepared(tiny)
  state = run_lib.place(run.program.init(run.seeds))
  params = jax.tree.map(lambda p: np.full_like(p, np.nan), state.params)
  stamp = config_lib.to_json(run.config)
  workdir_lib.claim(tmp_path, stamp)
  checkpoints = checkpoint.Checkpoints(tmp_path, stamp)
  checkpoints.save(0, state._replace(params=params), {"seconds": 0.0})
  checkpoints.close()
  with pytest.raises(errors.NonFiniteError, match=r"epoch 1.*learning_rate below 0.1"):
    train_and_evaluate(tiny, tmp_path, verbose=False)
  records = [r for r in metrics.read(tmp_path) if "train_loss" in r]
  assert records[-1]["train_loss"] is None
  assert records[-1]["skipped_steps"] == 40
  assert records[-1]["skipped_mask_updates"] == 3


def test_a_run_may_end_within_an_epoch(tmp_path, monkeypatch, prepared, tiny):
  short = prepared(tiny)._replace(total_steps=70)  # of 40 per epoch
  monkeypatch.setattr(run_lib, "prepare", lambda config: short)
  result = train_and_evaluate(tiny, tmp_path, verbose=False)
  assert result.finished
  assert result.step == 70
  assert np.isfinite(result.test_loss).all()
  last = metrics.read(tmp_path)[-1]
  assert (last["step"], last["epoch"]) == (70, 1.75)
  assert last["validation_accuracy"] > 0.2
  assert (tmp_path / "checkpoints/70").is_dir()


def test_num_steps_is_the_length_of_the_run(tiny):
  assert run_lib.prepare({**tiny, "num_steps": 70}).total_steps == 70
  assert run_lib.prepare(tiny).total_steps == 160


def test_seeds_side_by_side(tmp_path, capsys, two_seeds):
  result = train_and_evaluate(two_seeds, tmp_path)
  assert result.test_accuracy.shape == (2,)
  assert (result.test_accuracy > 0.8).all()
  for masks in jax.tree.leaves(sj.masks(result.state.opt_state)):
    assert (np.asarray(masks[0]) != np.asarray(masks[1])).any()
  record = metrics.read(tmp_path)[-1]
  assert len(record["validation_accuracy"]) == 2
  assert len(json.loads((tmp_path / "summary.json").read_text())["test_loss"]) == 2
  assert "(standard error, 2 seeds)" in capsys.readouterr().out
  again = train_and_evaluate(two_seeds, tmp_path, verbose=False)
  _same(result, again)


def test_not_verbose_shows_nothing(whole, tmp_path, capsys, tiny):
  shutil.copytree(whole[0], tmp_path / "copy")
  train_and_evaluate(tiny, tmp_path / "copy", verbose=False)
  assert capsys.readouterr() == ("", "")


def test_signals_are_left_alone_outside_the_main_thread():
  seen = []

  def work():
    with interrupt.listen() as stop:
      seen.append(bool(stop))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_announced_while_no_python_runs():
  """Handlers run after the call; hashing releases Python's lock, as XLA does."""
  said = []
  with interrupt.listen() as stop:
    stop.note = lambda message: said.append((message, time.monotonic()))
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while not stop:
      hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000)
    heard = time.monotonic()
  ((message, at),) = said
  assert message == "SIGTERM received: stopping after this step."
  assert at < heard


def test_a_second_signal_acts_as_it_did_before():
  def own(number, frame):
    seen.append(number)

  seen = []
  before = signal.signal(signal.SIGTERM, own)
  try:
    with interrupt.listen() as stop:
      for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
      assert stop
      assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is own
  finally:
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="reads the system's handlers")
def test_a_handler_that_python_did_not_install_is_put_back():
  """As that of `jax.distributed`, which `signal.getsignal` does not show."""
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  own = ctypes.cast(libc.abs, ctypes.c_void_p).value  # never called
  before = signal.getsignal(signal.SIGTERM)
  libc.signal(signal.SIGTERM, own)
  try:
    for _ in range(2):
      with interrupt.listen() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop:
          time.sleep(0.01)
    assert libc.signal(signal.SIGTERM, None) == own
  finally:
    signal.signal(signal.SIGTERM, before)
