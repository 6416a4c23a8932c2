"""Initial weights and masks of the trainings of a lottery ticket experiment."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from sparsejax import lottery
from sparsejax.core import salted
from sparsejax.experiments.lottery import _levels, _setup
from sparsejax.experiments.lottery._config import LotteryConfig
from sparsejax.experiments.lottery._levels import Arm
from sparsejax.experiments.lottery._setup import Setup
from sparsejax.training import ConfigError

PyTree = Any
DENSE, INITIAL, REWIND = Arm("dense", 0), Arm("rewind", 0), Arm("rewind", 1)
_CONTROL, _MASK = 101, 102  # constants folded into keys


def start(setup: Setup, path: pathlib.Path, arm: Arm) -> tuple[PyTree, PyTree]:
  """Returns the initial weights and masks of an arm, stacked over seeds.

  Args:
    setup: the experiment's `Setup`, from `prepare`.
    path: the experiment's directory.
    arm: any arm except the dense one; the arms that it needs must be finished.

  Returns:
    `((params, model_state), masks)`.

  Raises:
    CheckpointError: an arm that it needs is missing.
    ConfigError: the fraction to prune would leave a layer empty.
  """
  c = setup.config
  like = stacked(setup, setup.like)
  read = functools.partial(_levels.read_weights, path, like=like)
  # A control starts from the ticket of its level.
  if arm.kind not in ("ticket", "one_shot"):
    ticket = Arm("ticket", arm.level)
    masks = _levels.read_masks(path, ticket, stacked(setup, setup.masks))
    return control(setup, arm, read(REWIND), masks)
  # A ticket is pruned from the level before; a one-shot ticket from the dense network,
  # by as much as in all rounds up to its level.
  rounds = 1
  before = Arm("ticket", arm.level - 1) if arm.level > 1 else DENSE
  if arm.kind == "one_shot":
    rounds, before = arm.level, DENSE
  initial, final = read(INITIAL)[0], read(before)
  masks = _levels.read_masks(path, before, stacked(setup, setup.masks))
  masks = prune_seeds(c, initial, final[0], masks, rounds)
  return (read(REWIND) if c.restart == "rewind" else final), masks


def prune_seeds(
  config: LotteryConfig, initial: PyTree, final: PyTree, masks: PyTree, rounds: int = 1
) -> PyTree:
  """Prunes each seed's network according to the config.

  Args:
    config: a complete config.
    initial: params (seeds, ...) at step 0.
    final: params (seeds, ...) after training.
    masks: bool (seeds, ...).
    rounds: the number of rounds to prune at once, by `1 - (1 - rate)^rounds`.

  Returns:
    Masks (seeds, ...).

  Raises:
    ConfigError: this would leave a layer empty.
  """

  def at_once(rate):
    return 1 - (1 - rate) ** rounds

  rates = {name: at_once(r) for name, r in config.prune_rates.items()}
  all_keys, several = _setup.keys(config), []
  for seed in range(config.train.num_seeds):
    first, last, live = jax.tree.map(
      lambda x, seed=seed: jnp.asarray(x[seed]), (initial, final, masks)
    )
    key = salted(all_keys[seed], _MASK)

    def score(params, masks, first=first, key=key):
      return lottery.criterion(
        config.criterion, first, params, masks, key, stacked=config.stacked or False
      )

    try:
      several.append(
        lottery.prune(
          last,
          live,
          at_once(config.prune_fraction),
          scope=config.scope,
          rates=rates,
          score=score,
          stacked=config.stacked or False,
        )
      )
    except ValueError as e:
      raise ConfigError(f"prune_fraction, prune_rates or rounds: {e}") from e
  return jax.tree.map(lambda *m: jnp.stack(m), *several)


def control(
  setup: Setup, arm: Arm, rewound: PyTree, masks: PyTree
) -> tuple[PyTree, PyTree]:
  """Returns the initial weights and masks of a control, stacked over seeds.

  reinit: new random weights with the ticket's masks;  reinit_signs: the same with the
  signs of the rewound weights;  reshuffle, constant: see `lottery.mask_one`;
  random: the rewound weights with masks shuffled within layers;  random_reinit: new
  random weights with shuffled masks.

  Args:
    setup: the experiment's `Setup`, from `prepare`.
    arm: the control and its level.
    rewound: `(params, model_state)` that the ticket was rewound to.
    masks: the masks of the ticket.

  Returns:
    `((params, model_state), masks)`.
  """
  name, stacks = arm.kind, setup.config.stacked or False

  def one(key, params, state, masks):
    key = salted(key, _CONTROL, arm.level)
    fresh = lambda key: setup.init(key)[0]
    if name.startswith("random"):
      masks = lottery.random_masks(masks, salted(key, 1), stacked=stacks)
    action = "reinit" if "reinit" in name else name
    if name == "random":
      action = "rewind"
    signs = name == "reinit_signs"
    params = lottery.mask_one(
      action, params, masks, key, fresh=fresh, keep_signs=signs, stacked=stacks
    )
    return params, state, masks

  all_keys = _setup.keys(setup.config)
  params, state, masks = jax.jit(jax.vmap(one))(all_keys, *rewound, masks)
  return (params, state), masks


def held(setup: Setup, path: pathlib.Path, params: PyTree, masks: PyTree) -> PyTree:
  """Sets the masked weights to the values of the config's mask-0 action.

  Whether a weight moved away from zero is determined from the dense training, because a
  pruned weight does not move.

  Args:
    setup: the experiment's `Setup`, from `prepare`.
    path: the experiment's directory; its dense training must be finished.
    params: (seeds, ...), the initial values of the live weights.
    masks: bool (seeds, ...).

  Returns:
    A tree like `params`; see `lottery.mask_zero`.
  """
  read = functools.partial(_levels.read_weights, path, like=stacked(setup, setup.like))
  values = lottery.mask_zero(
    setup.config.mask_zero, read(INITIAL)[0], read(DENSE)[0], masks
  )
  return jax.tree.map(
    lambda v, p, m: v if m is None else jnp.where(m, p, v),
    values,
    params,
    masks,
    is_leaf=lambda x: x is None,
  )


def stacked(setup: Setup, tree: PyTree) -> PyTree:
  """Returns the abstract values of a tree that is stacked over seeds.

  Args:
    setup: the experiment's `Setup`, from `prepare`.
    tree: arrays of one network, abstract or not.

  Returns:
    A tree of `jax.ShapeDtypeStruct`, (seeds, ...).
  """
  n = setup.config.train.num_seeds
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), tree)
