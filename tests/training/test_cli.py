import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import sparsejax as sj
from sparsejax import models
from sparsejax.experiments.command_line import _configs as command_line
from sparsejax.experiments.command_line import _flags as command_line_flags
from sparsejax.training import _errors as errors
from sparsejax.training import _functions as functions
from sparsejax.training import _methods as methods
from sparsejax.training import _optimizers as optimizers
from sparsejax.training import _run as run
from sparsejax.training import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ["digits", "mnist_lenet300", "mnist_lenet5"]
CONFIGS += ["cifar10_conv4", "cifar10_vgg16", "cifar10_wide_resnet"]
QUICK = [
  "--config=configs/digits.py:dense",
  "--config.checkpoint_every=1000",
  "--config.num_epochs=100000",
]


def _config(name):
  file = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"config_{name}", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_complete_and_valid(name):
  module = _config(name)
  for variant in methods.METHODS:
    config = config_lib.complete(module.get_config(variant))
    assert config.method == variant
    models.create(config.model, **config.model_kwargs)
  assert config_lib.complete(module.get_config()).method == "sparse_momentum"


@pytest.mark.parametrize("variant", ["rigl", "sparse_momentum", "snip"])
def test_imagenet_builds(variant):
  """Model, optimizer and masks of ResNet-50, without a number being computed."""
  c = config_lib.complete(_config("imagenet_resnet50").get_config(variant))
  model = functions.from_flax(models.create(c.model, num_classes=1000))
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params, state = jax.eval_shape(model.init, jax.random.key(0), images)
  assert set(state) == {"batch_stats"}
  steps_per_epoch = 1_281_167 // c.batch_size
  tx = optimizers.make_tx(c, 100 * steps_per_epoch, 0)
  masks = sj.masks(jax.eval_shape(tx.init, params))
  assert sum(mask.size for mask in jax.tree.leaves(masks)) == 25_502_912
  rate = optimizers.learning_rate(c, 100 * steps_per_epoch)
  assert float(rate(29 * steps_per_epoch)) == pytest.approx(c.learning_rate)
  assert float(rate(2 * steps_per_epoch)) < 0.41 * c.learning_rate
  assert float(rate(31 * steps_per_epoch)) == pytest.approx(0.1 * c.learning_rate)


def test_imagenet_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(
    errors.DatasetNotFoundError, match=r"prepare_data.py imagenet2012"
  ):
    run.prepare(_config("imagenet_resnet50").get_config())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_say_how_they_are_launched(name):
  text = _config(name).__doc__
  assert f"python scripts/train.py --config=configs/{name}.py --workdir=runs/" in text


def _train(*args):
  return subprocess.Popen(
    [sys.executable, "scripts/train.py", *args],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_sigterm_writes_a_checkpoint_and_exits_with_zero(tmp_path):
  process = _train(*QUICK, f"--workdir={tmp_path}")
  metrics = tmp_path / "metrics.jsonl"
  for _ in range(600):
    if metrics.exists() and len(metrics.read_text().splitlines()) > 10:
      break
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "Stopped by SIGTERM at step" in out
  assert "Traceback" not in err
  assert "\x1b" not in out + err  # colours are for terminals
  (checkpoint,) = (tmp_path / "checkpoints").iterdir()
  last = json.loads(metrics.read_text().splitlines()[-1])
  assert int(checkpoint.name) == last["step"]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--config.densty=0.1"], "config has no field 'densty'; did you mean 'density'?"),
    (["--config.method_kwargs.a=1"], """--config.method_kwargs="{'a': VALUE}" sets"""),
    (["--density=0.1"], "flag 'density'; did you mean --config.density?"),
    (["--config.drop_fraction=3.0"], "drop_fraction must be in [0, 1); got 3.0"),
  ],
)
def test_a_mistake_is_one_clear_line(run_script, tmp_path, args, message):
  workdir = f"--workdir={tmp_path / 'run'}"
  done = run_script("scripts/train.py", *QUICK, workdir, *args)
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run" / "config.json").exists()


def test_help_may_be_cut_off():
  with _train("--help") as process:
    process.stdout.close()  # as `head` does
    assert (process.stderr.read(), process.wait()) == ("", 0)


@pytest.mark.parametrize(
  ("script", "args", "message"),
  [
    ("train.py", [], "Error: --config must name a config file. Available configs:"),
    ("train.py", ["--config=configs/digit.py:rigl"], "did you mean configs/digits.py?"),
    (
      "compare.py",
      ["--config=x.py"],
      "Error: there is no config x.py. Available configs:",
    ),
  ],
)
def test_configs_are_listed_where_none_is_named(run_script, script, args, message):
  done = run_script(f"scripts/{script}", "--workdir=nowhere", *args)
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert "  configs/digits.py" in done.stderr
  assert "A small network on scikit-learn's 8x8 digits" in done.stderr
  assert not (ROOT / "nowhere").exists()
  assert "configs/digits_lottery.py" not in done.stderr


@pytest.mark.parametrize(
  ("script", "config", "other"),
  [
    ("train.py", "digits_lottery", "lottery.py"),
    ("compare.py", "mnist_lenet5_nest", "grow_and_prune.py"),
    ("instability.py", "digits", "train.py"),
    ("lottery.py", "digits_lottery", None),
    ("instability.py", "digits_lottery", None),
    ("compare.py", "digits", None),
  ],
)
def test_a_config_for_another_script_is_recognized(script, config, other):
  found = command_line.other_script(f"scripts/{script}", _config(config).get_config())
  assert found == other


@pytest.mark.parametrize("kind", ["ValueError", "sparsejax.training.ConfigError"])
def test_an_error_in_a_config_file_is_its_last_line(kind):
  text = f"in config\nTraceback (most recent call last):\n  ...\n{kind}: no 'x'; got x"
  assert command_line_flags._reason(TypeError(text), []) == "no 'x'; got x"
  assert command_line_flags._reason(TypeError("two\n lines"), []) == "two  lines"


def test_a_config_for_another_script_is_refused_by_name(run_script, tmp_path):
  done = run_script(
    "scripts/train.py", "--config=configs/digits_lottery.py", f"--workdir={tmp_path}"
  )
  assert done.returncode == 1
  assert (
    "Error: configs/digits_lottery.py is a config for scripts/lottery.py, not for"
    " scripts/train.py."
  ) in done.stderr


def test_help_explains(run_script):
  out = run_script("scripts/train.py", "--help").stdout
  for part in ("--config=configs/digits.py", "--workdir"):
    assert part in out
  # Every field with its default, its meaning and its rule.
  text = " ".join(out.split())
  for name in config_lib.TrainConfig.__dataclass_fields__:
    assert f"--config.{name}" in text
  assert "--config.density=0.1 live weights / weights" in text
  assert "--config.lr_schedule='step' the schedule of the learning rate" in text
  assert "(one of constant, step, cosine)" in text


def test_the_library_imports_neither_training_nor_what_is_slow_to_import():
  code = (
    "import sys, sparsejax; "
    "bad = [m for m in ('sparsejax.training', 'flax', 'orbax', 'matplotlib', 'rich',"
    " 'ml_collections', 'tensorflow', 'sparsejax.analysis', 'scipy.stats',"
    " 'jax.experimental.pallas') if m in sys.modules]; "
    "assert not bad, bad"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_prepare_data_says_what_is_missing(run_script, tmp_path):
  if importlib.util.find_spec("tensorflow") is not None:
    pytest.skip("TensorFlow is installed: this would download")
  done = run_script("scripts/prepare_data.py", "mnist", f"--data_dir={tmp_path}")
  assert done.returncode == 1
  assert "pip install --editable '.[data]'" in done.stderr


@pytest.mark.parametrize(
  ("name", "code", "message"),
  [
    ("text", 0, "text needs no preparation: it comes with Python."),
    ("imagenet2012", 1, "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into"),
  ],
)
def test_every_data_set_can_be_prepared_or_says_how(
  run_script, tmp_path, name, code, message
):
  done = run_script("scripts/prepare_data.py", name, f"--data_dir={tmp_path}")
  assert done.returncode == code
  assert message in done.stdout + done.stderr


def test_variants_are_listed_where_one_is_unknown():
  module = _config("mnist_lenet5_nest")
  known = "structured, prune_only, smaller"
  with pytest.raises(ValueError, match=f"must be empty or one of {known}; got 'x'"):
    module.get_config("x")
