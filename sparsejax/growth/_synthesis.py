"""The loop of a synthesis: a network grows to a target, then is pruned to the bone."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

State = Any


class Milestone(NamedTuple):
  """A size on the way down, at which the network is fine-tuned and kept.

  Attributes:
    connections: live weights there, in the whole network or one number a layer.
    rounds: pruning rounds from the size before, in equal ratios.
    units: how many inputs, then units of each hidden layer, may be left there; () for
      any: then only connections are pruned.
  """

  connections: int | tuple[int, ...]
  rounds: int
  units: tuple[int, ...] = ()


class Plan(NamedTuple):
  """A synthesis in numbers.

  Attributes:
    target_error: growth ends once the error is at most this.
    growth_rounds: or after so many rounds; the seed's training is the first.
    growth_epochs: training after each of them.
    milestones: where pruning goes.
    prune_epochs: retraining of the whole network after each pruning.
    tolerated_error: a pruned network whose error stays above it is given up.
    patience: how often such a network is retrained before that.
    tune_epochs: training at a milestone, the learning rate falling to zero.
    floor: the learning rate at the end of a round, times the one at its start.
  """

  target_error: float
  growth_rounds: int
  growth_epochs: int
  milestones: tuple[Milestone, ...]
  prune_epochs: int = 3
  tolerated_error: float = math.inf
  patience: int = 1
  tune_epochs: int = 40
  floor: float = 0.25


class Position(NamedTuple):
  """Where a synthesis stands: with the two states, all that it needs to go on.

  Attributes:
    phase: "grow", "prune", "tune" or "done".
    round: rounds done in this phase.
    milestone: which one is next.
    tries: retrainings of a network whose error is too large.
    start: connections of each layer where pruning towards the milestone began.
    start_units: units there.
    given_up: whether accuracy could not be recovered, so that no milestone follows.
  """

  phase: str = "grow"
  round: int = 0
  milestone: int = 0
  tries: int = 0
  start: tuple[int, ...] = ()
  start_units: tuple[int, ...] = ()
  given_up: bool = False


class Actions(NamedTuple):
  """What a synthesis does to a network, as functions on a state of any kind.

  Attributes:
    grow: `(state, round) -> state`, by the growth policies.
    prune: `(state, connections, units) -> state`, to at most so many; connections as
      in the milestone, of the whole network or of each layer.
    train: `(state, epochs, first, last) -> state`; the learning rate goes along a
      cosine from `first` to `last` times its peak.
    error: `(state) -> float` that is compared with the plan's errors.
    size: `(state) -> (connections, units)`, the former of each layer.
    keep: `(state, milestone)`, told of every network that was fine-tuned.
    save: `(state, best, position, error)`, told of every round.
  """

  grow: Callable[[State, int], State]
  prune: Callable[[State, int | tuple[int, ...], tuple[int, ...]], State]
  train: Callable[[State, int, float, float], State]
  error: Callable[[State], float]
  size: Callable[[State], tuple[tuple[int, ...], tuple[int, ...]]]
  keep: Callable[[State, int], None]
  save: Callable[[State, State, Position, float], None]


def synthesize(
  plan: Plan,
  actions: Actions,
  state: State,
  best: State | None = None,
  position: Position | None = None,
) -> State:
  """Grows a network until it is good enough, then prunes it as far as it stays so.

  grow:  train; while error > target: grow, train
  prune: prune, retrain the whole; while error > tolerated: retrain, at most `patience`
         times; then go back to the best state and end
  tune:  at a milestone's size, train to the end and keep

  The best state is the smallest network whose error was tolerated. Files, data and
  compiled functions are the caller's (`sparsejax.training.grow_and_prune`); this is
  control alone, and from `(state, best, position)` it goes on where it was.

  Args:
    plan: numbers.
    actions: functions.
    state: the seed, or the state that `actions.save` was told last.
    best: the other state that it was told; None to begin.
    position: the position that it was told; None to begin.

  Returns:
    The last state.

  Raises:
    ValueError: a number of the plan is outside its range, or a milestone has not one
      number a layer.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), figure 3 and algorithm 4.

  Example:
    >>> nothing = lambda *args: None
    >>> actions = Actions(
    ...   grow=lambda n, round: n + 10,
    ...   prune=lambda n, connections, units: connections,
    ...   train=lambda n, epochs, first, last: n,
    ...   error=lambda n: 100 / n,
    ...   size=lambda n: ((n,), ()),
    ...   keep=lambda n, i: print("kept", n),
    ...   save=lambda n, best, position, error: print(position.phase, n),
    ... )
    >>> plan = Plan(4.0, 9, 1, (Milestone(12, 2),), tolerated_error=7.0)
    >>> synthesize(plan, actions, 10)
    grow 10
    grow 20
    prune 30
    prune 19
    prune 12
    tune 19
    kept 19
    done 19
    19
  """
  check_plan(plan)
  position = Position() if position is None else position
  best = state if best is None else best
  while position.phase != "done":
    state, best, position, error = _step(plan, actions, state, best, position)
    actions.save(state, best, position, error)
  return state


def check_plan(plan: Plan) -> None:
  """Raises ValueError for a plan that cannot be carried out."""
  if not plan.milestones:
    raise ValueError("milestones must hold at least one, got none.")
  last = math.inf
  for milestone in plan.milestones:
    connections = _total(milestone.connections)
    if not 0 < connections < last:
      raise ValueError(
        f"milestones must have fewer and fewer connections, got {plan.milestones}."
      )
    if milestone.rounds < 1:
      raise ValueError(f"rounds must be at least 1, got {milestone.rounds}.")
    last = connections
  for name in ("growth_rounds", "growth_epochs", "prune_epochs", "tune_epochs"):
    if getattr(plan, name) < 1:
      raise ValueError(f"{name} must be at least 1, got {getattr(plan, name)}.")


def ladder(start: int, end: int, rounds: int, done: int) -> int:
  """The size after `done` of so many rounds, in equal ratios.

  start (end / start)^(done / rounds), rounded; never above `start`

  Example:
    >>> [ladder(1000, 10, 4, i) for i in (1, 2, 3, 4)]
    [316, 100, 32, 10]
  """
  if end >= start:
    return start
  return round(start * (end / start) ** (done / rounds))


def _total(connections: int | tuple[int, ...]) -> int:
  return sum(connections) if isinstance(connections, tuple) else connections


def _step(plan, actions, state, best, position):
  if position.phase == "grow":
    return _grow(plan, actions, state, position)
  if position.phase == "prune":
    return _prune(plan, actions, state, best, position)
  state = actions.train(state, plan.tune_epochs, 1.0, 0.0)
  actions.keep(state, position.milestone)
  following = position.milestone + 1
  done = position.given_up or following == len(plan.milestones)
  after = Position("done" if done else "prune", milestone=following)
  return state, state, after, actions.error(state)


def _grow(plan, actions, state, position):
  if position.round:
    state = actions.grow(state, position.round)
  state = actions.train(state, plan.growth_epochs, 1.0, plan.floor)
  error, after = actions.error(state), position.round + 1
  grown = error <= plan.target_error or after == plan.growth_rounds
  phase = Position("prune") if grown else position._replace(round=after)
  return state, state, phase, error


def _prune(plan, actions, state, best, position):
  milestone = plan.milestones[position.milestone]
  if not position.start:
    connections, units = actions.size(state)
    position = position._replace(start=connections, start_units=units)
  if not position.tries:
    done = position.round + 1
    down = lambda start, end: ladder(start, end, milestone.rounds, done)
    if isinstance(milestone.connections, tuple):
      if len(milestone.connections) != len(position.start):
        raise ValueError(
          "connections must be one number, or one number a layer,"
          f" {len(position.start)}; got {milestone.connections}."
        )
      keep = tuple(map(down, position.start, milestone.connections))
    else:
      keep = down(sum(position.start), milestone.connections)
    pairs = zip(position.start_units, milestone.units, strict=bool(milestone.units))
    left = tuple(down(*pair) for pair in pairs)
    state = actions.prune(state, keep, left)
    position = position._replace(round=done)
  state = actions.train(state, plan.prune_epochs, 1.0, plan.floor)
  error = actions.error(state)
  if error <= plan.tolerated_error:
    at_milestone = position.round == milestone.rounds
    position = position._replace(tries=0, phase="tune" if at_milestone else "prune")
    return state, state, position, error
  if position.tries < plan.patience:
    return state, best, position._replace(tries=position.tries + 1), error
  return best, best, position._replace(phase="tune", given_up=True), error
