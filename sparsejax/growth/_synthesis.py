"""The loop of grow-and-prune synthesis: growth to a target error, then pruning."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

State = Any


class Milestone(NamedTuple):
  """A size at which the network is fine-tuned and kept while it is pruned.

  Attributes:
    connections: the number of live weights, of the whole network or one per layer.
    rounds: the number of pruning rounds from the previous size, in equal ratios.
    units: the maximum numbers of inputs and of units of each hidden layer; () to prune
      connections only.
  """

  connections: int | tuple[int, ...]
  rounds: int
  units: tuple[int, ...] = ()


class Plan(NamedTuple):
  """The settings of a synthesis.

  Attributes:
    target_error: growth ends when the error is at most this.
    growth_rounds: growth also ends after this many rounds; the first is the training
      of the seed.
    growth_epochs: training epochs per growth round.
    milestones: the sizes to prune to, in decreasing order.
    prune_epochs: training epochs of the whole network after each pruning.
    tolerated_error: pruning ends if the error of a pruned network stays above this.
    patience: how often a network with a larger error is retrained before pruning ends.
    tune_epochs: training epochs at a milestone, with the learning rate decayed to zero.
    floor: the final learning rate of a round, as a fraction of its initial one.
    area_rounds: rounds of partial areas at each milestone, before it is fine-tuned; 0
      for none.
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
  area_rounds: int = 0


class Position(NamedTuple):
  """The progress of a synthesis; with the two states, it suffices to resume.

  Attributes:
    phase: "grow", "prune", "areas", "tune" or "done".
    round: rounds completed in this phase.
    milestone: index of the next milestone.
    tries: how often the current network, whose error is too large, was trained.
    start: connections per layer when pruning towards the milestone began.
    start_units: numbers of units when pruning towards the milestone began.
    given_up: whether the error stayed too large, so that no further milestone follows.
  """

  phase: str = "grow"
  round: int = 0
  milestone: int = 0
  tries: int = 0
  start: tuple[int, ...] = ()
  start_units: tuple[int, ...] = ()
  given_up: bool = False


class Actions(NamedTuple):
  """The functions that a synthesis calls, on a state of any type.

  Attributes:
    grow: `(state, round) -> state`, applies the growth policies.
    prune: `(state, connections, units) -> state`, prunes to at most these numbers;
      connections are of the whole network or per layer, as in the milestone.
    train: `(state, epochs, first, last) -> state`, trains with a learning rate that
      follows a cosine from `first` to `last` times its peak.
    error: `(state) -> float`, the error that is compared with the plan's.
    size: `(state) -> (connections, units)`, the connections per layer.
    keep: `(state, milestone)`, called with every fine-tuned network.
    save: `(state, best, position, error)`, called after every round.
    prune_areas: `(state) -> state`, removes the positions of smallest contribution from
      the areas of all convolutions; needed if the plan has rounds of partial areas.
  """

  grow: Callable[[State, int], State]
  prune: Callable[[State, int | tuple[int, ...], tuple[int, ...]], State]
  train: Callable[[State, int, float, float], State]
  error: Callable[[State], float]
  size: Callable[[State], tuple[tuple[int, ...], tuple[int, ...]]]
  keep: Callable[[State, int], None]
  save: Callable[[State, State, Position, float], None]
  prune_areas: Callable[[State], State] | None = None


def synthesize(
  plan: Plan,
  actions: Actions,
  state: State,
  best: State | None = None,
  position: Position | None = None,
) -> State:
  """Grows a network to a target error, then prunes it while its error is tolerated.

  grow:  train; while error > target: grow, train
  prune: prune, retrain the whole; while error > tolerated: retrain, at most `patience`
         times; then go back to the best state and end
  areas: at a milestone's size, prune areas, retrain the whole; while error > tolerated:
         retrain, at most `patience` times; then go back to the best state
  tune:  at a milestone's size, train to the end and keep

  The best state is the smallest network whose error was tolerated. This function is the
  control flow only; the caller provides files, data and compiled functions. A synthesis
  can be resumed from the `(state, best, position)` that `actions.save` last received.

  Args:
    plan: the settings.
    actions: the functions to call.
    state: the seed, or the state to resume from.
    best: the best state to resume from; None to start.
    position: the position to resume from; None to start.

  Returns:
    The last state.

  Raises:
    ValueError: a number of the plan is outside its range, the numbers of a milestone
      are not one per layer, or there is no action for the plan's partial areas.

  References:
    Dai, Yin & Jha 2017 (arXiv 1711.02017), figure 3 and algorithm 4; section 3.4 for
    the areas.

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
  if plan.area_rounds and actions.prune_areas is None:
    raise ValueError(
      f"prune_areas must be among the actions if area_rounds is {plan.area_rounds}, got"
      " None."
    )
  position = Position() if position is None else position
  best = state if best is None else best
  while position.phase != "done":
    state, best, position, error = _step(plan, actions, state, best, position)
    actions.save(state, best, position, error)
  return state


def check_plan(plan: Plan) -> None:
  """Raises ValueError if the numbers of a plan are outside their ranges."""
  if not plan.milestones:
    raise ValueError("milestones must contain at least one, got none.")
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
  if plan.area_rounds < 0:
    raise ValueError(f"area_rounds must be at least 0, got {plan.area_rounds}.")


def size_after(start: int, end: int, rounds: int, done: int) -> int:
  """Computes the size after `done` of `rounds` rounds of pruning in equal ratios.

  start (end / start)^(done / rounds), rounded; never above `start`

  Example:
    >>> [size_after(1000, 10, 4, i) for i in (1, 2, 3, 4)]
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
  if position.phase == "areas":
    return _prune_areas(plan, actions, state, best, position)
  # Fine-tune at the milestone, keep the network, and go on to the next milestone.
  state = actions.train(state, plan.tune_epochs, 1.0, 0.0)
  actions.keep(state, position.milestone)
  following = position.milestone + 1
  done = position.given_up or following == len(plan.milestones)
  after = Position("done" if done else "prune", milestone=following)
  return state, state, after, actions.error(state)


def _grow(plan, actions, state, position):
  # The first round trains the seed; each later round grows the network first.
  if position.round:
    state = actions.grow(state, position.round)
  state = actions.train(state, plan.growth_epochs, 1.0, plan.floor)
  error, after = actions.error(state), position.round + 1
  grown = error <= plan.target_error or after == plan.growth_rounds
  phase = Position("prune") if grown else position._replace(round=after)
  return state, state, phase, error


def _prune(plan, actions, state, best, position):
  # In the first round towards a milestone, record the sizes to start from.
  milestone = plan.milestones[position.milestone]
  if not position.start:
    connections, units = actions.size(state)
    position = position._replace(start=connections, start_units=units)
  # Prune to this round's sizes, unless the last network is to be retrained.
  if not position.tries:
    done = position.round + 1
    down = lambda start, end: size_after(start, end, milestone.rounds, done)
    if isinstance(milestone.connections, tuple):
      if len(milestone.connections) != len(position.start):
        raise ValueError(
          "connections must be one number, or one number per layer,"
          f" {len(position.start)}; got {milestone.connections}."
        )
      keep = tuple(map(down, position.start, milestone.connections))
    else:
      keep = down(sum(position.start), milestone.connections)
    pairs = zip(position.start_units, milestone.units, strict=bool(milestone.units))
    left = tuple(down(*pair) for pair in pairs)
    state = actions.prune(state, keep, left)
    position = position._replace(round=done)
  last = position.round == milestone.rounds
  return _retrain(plan, actions, state, best, position, last, given_up=True)


def _prune_areas(plan, actions, state, best, position):
  # Prune the areas, unless the last network is to be retrained. If the error stays too
  # large, the network keeps larger areas, and pruning continues at the next milestone.
  if not position.tries:
    state = actions.prune_areas(state)
    position = position._replace(round=position.round + 1)
  last = position.round == plan.area_rounds
  given_up = position.given_up
  return _retrain(plan, actions, state, best, position, last, given_up=given_up)


def _retrain(plan, actions, state, best, position, last, given_up):
  """Trains a pruned network, and decides from its error what follows.

  If the error is tolerated, continue with this network; if not, retrain it again, at
  most `patience` times, and then end the phase with the best network.

  `last` says whether this is the last round of the phase; `given_up` is the position's
  field if the error stays too large.
  """
  state = actions.train(state, plan.prune_epochs, 1.0, plan.floor)
  error = actions.error(state)
  following = "tune"
  if position.phase == "prune" and plan.area_rounds:
    following = "areas"
  end = position._replace(phase=following, round=0, tries=0)
  if error <= plan.tolerated_error:
    return state, state, end if last else position._replace(tries=0), error
  if position.tries < plan.patience:
    return state, best, position._replace(tries=position.tries + 1), error
  return best, best, end._replace(given_up=given_up), error
