"""The runner of grow-and-prune synthesis: `grow_and_prune`."""

import functools
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from sparsejax import growth
from sparsejax.core import Pace, salted
from sparsejax.experiments.nest import _capacity, _config, _growth, _milestones
from sparsejax.training import (
  Checkpoints,
  ConfigError,
  MetricsWriter,
  Program,
  TrainState,
  check_workdir,
  claim_workdir,
  cross_entropy,
  data,
  environment,
  exclusive_workdir,
  listen_for_signals,
  no_totals,
  place_arrays,
  place_splits,
)

PyTree = Any


class Network(NamedTuple):
  """A network, and the capacity that it has grown to.

  Attributes:
    doublings: how often the config's capacity was doubled.
    train: the training state: parameters, optimizer and masks.
    error: error on the augmented training images of the last epoch, percent.
  """

  doublings: int
  train: TrainState
  error: float = float("nan")


class _StoppedError(Exception):
  """Raised when a signal stops the run, which can resume from the last saved round."""


def grow_and_prune(
  config: Mapping[str, Any], workdir: os.PathLike | str, verbose: bool = True
) -> list[dict[str, Any]]:
  """Runs or resumes a synthesis: `growth.synthesize` on a data set.

  The workdir then contains `config.json`, `metrics.jsonl` with one record per round,
  checkpoints, and, for each milestone i, `milestone_i.json` and `milestone_i.npz`. A
  second call with the same config resumes after the last finished round. SIGTERM and
  SIGINT stop the run.

  Args:
    config: some or all fields of `default_config`.
    workdir: a directory for this run alone.
    verbose: whether to print one line per round.

  Returns:
    The records of the milestones reached so far, in order.

  Raises:
    TrainingError: before any work is done, if the config, the data set, the workdir or
      its checkpoints cannot be used.
  """
  complete = _config.complete(config)
  stamp = _config.stamp(complete)
  with listen_for_signals() as stop, exclusive_workdir(workdir) as path:
    check_workdir(path, stamp)
    run = _Run(complete, stamp, path, stop, verbose)
    try:
      run.go()
    except _StoppedError:
      run.say("Stopped; the same command resumes.")
    finally:
      run.close()
  return _milestones.read(path)


class _Run:
  """The actions of a synthesis, as methods on their shared data and programs."""

  def __init__(self, config, stamp, path, stop, verbose):
    self.config, self.stamp, self.path, self.stop = config, stamp, path, stop
    self.verbose, self.started, self.before = verbose, time.monotonic(), 0.0
    dataset = data.load(
      config.dataset, config.data_dir, config.validation_fraction, config.image_size
    )
    if config.inputs == "unit":
      dataset = data.unit(dataset)
    self.dataset = dataset
    self.steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if not self.steps_per_epoch:
      raise ConfigError(
        f"batch_size must be at most the {len(dataset.train.labels)} training images; "
        f"got {config.batch_size}"
      )
    self.train_data, self.validation, self.test = place_splits(dataset)
    self.capacity = functools.cache(functools.partial(_capacity.make, config, dataset))
    self.capacity(0)  # raises now if the model does not fit the data
    self.stores: dict[int, Checkpoints] = {}
    self.rounds = 0
    stop.note = self.say

  def say(self, text: str) -> None:
    if self.verbose:
      print(text, flush=True)

  def close(self) -> None:
    for store in self.stores.values():
      store.close()

  def go(self) -> None:
    """Runs the synthesis from its last checkpoint or from the seed."""
    network, best, position = self._restore()
    claim_workdir(self.path, self.stamp)
    actions = growth.Actions(
      grow=self.grow,
      prune=self.prune,
      train=self.train,
      error=self.error,
      size=self.size,
      keep=self.keep,
      save=self.save,
      prune_areas=self.prune_areas,
    )
    with MetricsWriter(self.path, int(network.train.step)) as writer:
      self.writer = writer
      growth.synthesize(_config.plan(self.config), actions, network, best, position)

  def _seed(self) -> Network:
    """Creates the sparse seed, with weights rescaled for its masks."""
    capacity, c = self.capacity(0), self.config
    state = capacity.program.init(np.full(1, c.seed, np.int32))
    key = salted(jax.random.key(c.seed), _growth.SEED)
    try:
      masks = growth.seed(capacity.chain, c.width_ratio, c.density, key)
    except ValueError as e:
      raise ConfigError(str(e)) from e
    state = _growth.with_masks(state, masks)
    params = sj.rescale(state.params, sj.masks(state.opt_state))
    return Network(0, place_arrays(state._replace(params=params)))

  def _store(self, doublings: int) -> Checkpoints:
    """Returns the checkpoints of a capacity, whose arrays have other shapes."""
    if doublings not in self.stores:
      folder = self.path / f"capacity_{doublings}"
      folder.mkdir(exist_ok=True)
      self.stores[doublings] = Checkpoints(folder, self.stamp)
    return self.stores[doublings]

  def _restore(self):
    """Restores the newest checkpoint, of the largest capacity; else starts a seed."""
    folders = [int(f.name.split("_")[1]) for f in self.path.glob("capacity_*")]
    for doublings in sorted(folders, reverse=True):
      init = self.capacity(doublings).program.init
      like = jax.eval_shape(init, np.zeros(1, np.int32))
      found = self._store(doublings).restore({"state": like, "best": like})
      if found is None:
        continue
      extra = found.extra
      self.before, self.rounds = extra["seconds"], extra["rounds"]
      network, best = (
        Network(doublings, place_arrays(found.state[name]), extra["errors"][i])
        for i, name in enumerate(("state", "best"))
      )
      position = extra["position"]
      for name in ("start", "start_units"):
        position[name] = tuple(position[name])
      self.say(f"Resuming after round {self.rounds}.")
      return network, best, growth.Position(**position)
    network = self._seed()
    return network, network, growth.Position()

  def grow(self, network: Network, round_: int) -> Network:
    """Grows units and connections; doubles the capacity first if units are missing."""
    del round_
    c, units = self.config, self.config.growth_units
    capacity = self.capacity(network.doublings)
    masks = sj.masks(network.train.opt_state)
    if units and _growth.missing_units(masks, capacity.chain, units):
      network = self._double(network)
      capacity = self.capacity(network.doublings)
      self.say(f"  capacity doubled to {capacity.features}")
    state = network.train
    key = salted(state.key, _growth.GRADIENTS, state.step)
    found = capacity.gradients(state, self.train_data, key)
    state = _growth.grow(state, capacity.chain, found, self._batch_loss(network), c)
    return network._replace(train=place_arrays(state))

  def _batch_loss(self, network: Network):
    """Returns `params -> loss` on the first 500 images, to compare new feature maps."""
    apply, train = self.capacity(network.doublings).apply, self.train_data
    if isinstance(train, data.Stream):
      images, labels = next(train.in_order(500, None))
    else:
      images, labels = train.images[:500], train.labels[:500]
    images = self.dataset.normalize(images)
    variables = network.train.model_state

    def loss(params):
      logits, _ = apply(params, variables, images, None)
      return cross_entropy(logits, labels)[0]

    return loss

  def _double(self, network: Network) -> Network:
    """Copies a network into the model of twice the widths."""
    narrow, wide = (self.capacity(network.doublings + i) for i in range(2))
    fresh = wide.program.init(np.full(1, self.config.seed, np.int32))
    none = jax.tree.map(jnp.zeros_like, sj.masks(fresh.opt_state))
    fresh = _growth.with_masks(fresh, none)
    # The areas are not copied: all of them are whole while a network grows.
    variables, _ = _capacity.split_areas(network.train.model_state)
    new, areas = _capacity.split_areas(fresh.model_state)
    state = growth.carry_over(
      network.train._replace(model_state=variables),
      fresh._replace(model_state=new),
      narrow.chain,
      wide.chain,
    )
    if areas:
      variables = {**state.model_state, _growth.AREAS: areas}
      state = state._replace(model_state=variables)
    return Network(network.doublings + 1, place_arrays(state), network.error)

  def prune(
    self,
    network: Network,
    connections: int | tuple[int, ...],
    units: tuple[int, ...],
  ):
    """Prunes units, then connections, by the weights as batch normalization scales."""
    state, chain = network.train, self.capacity(network.doublings).chain
    masks, weights = sj.masks(state.opt_state), state.params
    if "batch_stats" in state.model_state:
      stats = state.model_state["batch_stats"]
      weights = growth.effective_weights(weights, stats, chain)
    if units:
      keep = [np.int32(n) for n in units]
      masks = growth.prune_units(masks, weights, chain, keep)
    power, keep = self.config.uses_power, jax.tree.map(np.int32, connections)
    masks = growth.prune_connections(masks, weights, chain, keep, powers=power)
    return network._replace(train=place_arrays(_growth.with_masks(state, masks)))

  def prune_areas(self, network: Network) -> Network:
    """Removes the positions of smallest contribution from the areas."""
    state, fraction = network.train, self.config.area_fraction
    key = salted(state.key, _growth.CONTRIBUTIONS, state.step)
    measure = self.capacity(network.doublings).contributions
    assert measure is not None
    sizes = measure(state, self.train_data, key)
    variables, areas = _capacity.split_areas(state.model_state)
    areas = {
      name: growth.prune_areas(area, sizes[name], fraction)
      for name, area in areas.items()
    }
    state = state._replace(model_state={**variables, _growth.AREAS: areas})
    return network._replace(train=place_arrays(state))

  def train(self, network: Network, epochs: int, first: float, last: float):
    """Trains for some epochs, with a cosine learning rate schedule."""
    program, state = self._program(network), network.train
    # Copy the state, because the program donates it and the caller may still need it.
    state = jax.tree.map(jnp.copy, state)
    accuracy, count, pace = np.nan, int(state.step), Pace()
    stopped = lambda: bool(self.stop)
    for epoch in range(epochs):
      along = (1 + np.cos(np.pi * (epoch + 0.5) / epochs)) / 2
      rate = self.config.learning_rate * (last + (first - last) * along)
      opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
      state = place_arrays(state._replace(opt_state=opt_state))
      order = program.order(state)

      def part(carry, start, stop, program=program, order=order):
        del start  # the state holds it
        state, totals = program.run(
          carry[0], self.train_data, order, np.int32(stop), carry[1]
        )
        return state, jax.device_get(totals)

      end = count + self.steps_per_epoch
      (state, totals), count = pace.run(part, (state, no_totals()), count, end, stopped)
      if count < end:
        raise _StoppedError
      accuracy = float(totals.means()[1])
    return Network(network.doublings, state, 100 * (1 - accuracy))

  def error(self, network: Network) -> float:
    """Returns the validation error, or the training error without validation images."""
    if not len(self.validation.labels):
      return network.error
    return self._error(network, self.validation)

  def _program(self, network: Network) -> Program:
    capacity = self.capacity(network.doublings)
    return _capacity.program_of(capacity, network.train)

  def _error(self, network: Network, split: Any) -> float:
    program = self._program(network)
    return 100 * (1 - float(program.evaluate(network.train, split).means()[1]))

  def size(self, network: Network) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the live connections of each layer, and the live units."""
    return _capacity.size(self.capacity(network.doublings), network.train)

  def _record(self, network: Network) -> dict[str, Any]:
    record = _capacity.describe(self.capacity(network.doublings), network.train)
    return {**record, "train_error": network.error}

  def _seconds(self) -> float:
    return self.before + time.monotonic() - self.started

  def save(self, network, best, position: growth.Position, error: float) -> None:
    """Writes the metrics and a checkpoint of a finished round."""
    self.rounds += 1
    step = int(network.train.step)
    record = {
      "epoch": step / self.steps_per_epoch,
      "phase": position.phase,
      "round": self.rounds,
      "error": error,
      **self._record(network),
    }
    self.writer.write(step, record)
    self.say(
      f"{self._seconds():6.0f} s  epoch {record['epoch']:.0f}  {position.phase:5}"
      f"  {record['connections']:,} connections, units {record['units']}"
      f"  error {error:.2f} % (training {network.error:.2f} %)"
    )
    self._store(network.doublings).save(
      step,
      {"state": network.train, "best": best.train},
      {
        "position": position._asdict(),
        "seconds": self._seconds(),
        "rounds": self.rounds,
        "errors": [network.error, best.error],
      },
    )

  def keep(self, network: Network, milestone: int) -> None:
    """Writes the files of a milestone."""
    capacity, state = self.capacity(network.doublings), network.train
    record = {
      "features": list(capacity.features),
      "num_classes": self.dataset.num_classes,
      **self._record(network),
      "error": self.error(network),
      "test_error_percent": self._error(network, self.test),
      "epochs": int(state.step) / self.steps_per_epoch,
      "seconds": self._seconds(),
      "run": environment(),
    }
    trees = {
      "params": state.params,
      "masks": sj.masks(state.opt_state),
      "state": state.model_state,
    }
    _milestones.write(self.path, milestone, record, trees)
    self.say(
      f"  milestone {milestone}: {record['parameters']:,} parameters,"
      f" {record['multiply_adds']:,} multiply-adds, test error"
      f" {record['test_error_percent']:.2f} %"
    )
