"""The synthesis loop, on numbers in the place of networks."""

import math

import pytest

from sparsejax import growth


class Interrupted(Exception):
  pass


def _actions(log, error, stop_after=None):
  def save(state, best, position, error):
    log.append((position.phase, state, best, position))
    if len(log) == stop_after:
      raise Interrupted

  return growth.Actions(
    grow=lambda n, round_: 2 * n,
    prune=lambda n, connections, units: connections,
    train=lambda n, epochs, first, last: n,
    error=error,
    size=lambda n: ((n,), ()),
    keep=lambda n, i: log.append(("kept", n, i, None)),
    save=save,
  )


PLAN = growth.Plan(
  target_error=2.0,
  growth_rounds=9,
  growth_epochs=1,
  milestones=(growth.Milestone(100, 2), growth.Milestone(25, 2)),
  tolerated_error=5.0,
  patience=2,
)


AREAS = PLAN._replace(milestones=(growth.Milestone(100, 1),), area_rounds=2)


def _with_areas(log, error, stop_after=None):
  """Actions on (connections, area), whose areas shrink by tenths."""
  return growth.Actions(
    grow=lambda n, round_: (2 * n[0], n[1]),
    prune=lambda n, connections, units: (connections, n[1]),
    train=lambda n, epochs, first, last: n,
    error=error,
    size=lambda n: ((n[0],), ()),
    keep=lambda n, i: log.append(("kept", n, i, None)),
    save=_actions(log, None, stop_after).save,
    prune_areas=lambda n: (n[0], n[1] - 10),
  )


def test_areas_are_pruned_at_each_milestone():
  log = []
  growth.synthesize(AREAS, _with_areas(log, lambda n: 1.0), (400, 100))
  assert _path(log) == [
    ("prune", (400, 100)),
    ("areas", (100, 100)),
    ("areas", (100, 90)),
    ("tune", (100, 80)),
    ("kept", (100, 80)),
    ("done", (100, 80)),
  ]


def test_areas_stay_as_large_as_the_error_needs():
  log = []
  plan = AREAS._replace(milestones=(*AREAS.milestones, growth.Milestone(25, 1)))
  error = lambda n: 1.0 if n[1] >= 90 else 6.0
  growth.synthesize(plan, _with_areas(log, error), (400, 100))
  # An area of 80 is retrained twice more; then pruning goes on to the next milestone.
  assert _path(log)[2:] == [
    ("areas", (100, 90)),
    ("areas", (100, 80)),
    ("areas", (100, 80)),
    ("tune", (100, 90)),
    ("kept", (100, 90)),
    ("prune", (100, 90)),
    ("areas", (25, 90)),
    ("areas", (25, 80)),
    ("areas", (25, 80)),
    ("tune", (25, 90)),
    ("kept", (25, 90)),
    ("done", (25, 90)),
  ]


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_it_resumes_among_the_rounds_of_areas(stop_after):
  error = lambda n: 1.0 if n[1] >= 90 else 6.0
  whole, first, rest = [], [], []
  growth.synthesize(AREAS, _with_areas(whole, error), (400, 100))
  with pytest.raises(Interrupted):
    growth.synthesize(AREAS, _with_areas(first, error, stop_after), (400, 100))
  _, state, best, position = first[-1]
  growth.synthesize(AREAS, _with_areas(rest, error), state, best, position)
  assert first + rest == whole


def _path(log):
  return [(phase, state) for phase, state, *_ in log]


def test_it_grows_to_the_target_and_prunes_to_each_milestone():
  log = []
  growth.synthesize(PLAN, _actions(log, lambda n: 400 / n if n > 200 else 4), 100)
  assert _path(log) == [
    ("grow", 100),
    ("grow", 200),
    ("prune", 400),
    ("prune", 200),
    ("tune", 100),
    ("kept", 100),
    ("prune", 100),
    ("prune", 50),
    ("tune", 25),
    ("kept", 25),
    ("done", 25),
  ]


def test_it_goes_back_to_the_best_where_accuracy_is_lost():
  log = []
  error = lambda n: 1.0 if n >= 100 else 6.0
  end = growth.synthesize(PLAN, _actions(log, error), 400)
  assert end == 100
  # 50 connections are retrained twice more, then given up.
  assert _path(log)[-6:] == [
    ("prune", 100),
    ("prune", 50),
    ("prune", 50),
    ("tune", 100),
    ("kept", 100),
    ("done", 100),
  ]


def test_growth_ends_after_its_rounds():
  log = []
  plan = PLAN._replace(growth_rounds=3, tolerated_error=math.inf)
  growth.synthesize(plan, _actions(log, lambda n: 50.0), 10)
  assert _path(log)[:3] == [("grow", 10), ("grow", 20), ("prune", 40)]
  # A network that is smaller than a milestone is not made larger.
  assert [state for phase, state, *_ in log if phase == "kept"] == [40, 25]


def test_each_layer_has_a_size_of_its_own_where_the_milestone_names_one():
  log = []
  actions = _actions(log, lambda n: 1.0)._replace(size=lambda n: (n, ()))
  by_layer = growth.Milestone((4, 81, 70), 2)
  plan = PLAN._replace(milestones=(by_layer,))
  end = growth.synthesize(plan, actions, (64, 100, 50))
  # In equal ratios, and no layer grows.
  pruned = [state for phase, state, *_ in log if phase in ("prune", "tune")]
  assert pruned == [(64, 100, 50), (16, 90, 50), (4, 81, 50)]
  assert end == (4, 81, 50)
  for sizes in ((4, 81), (1, 2, 3, 4)):
    plan = PLAN._replace(milestones=(growth.Milestone(sizes, 2),))
    with pytest.raises(ValueError, match="one number per layer"):
      growth.synthesize(plan, actions, (64, 100, 50))


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6, 7, 8])
def test_it_goes_on_from_any_round(stop_after):
  error = lambda n: 400 / n if n > 30 else 6.0
  whole, first, rest = [], [], []
  growth.synthesize(PLAN._replace(tolerated_error=9.0), _actions(whole, error), 100)
  plan = PLAN._replace(tolerated_error=9.0)
  with pytest.raises(Interrupted):
    growth.synthesize(plan, _actions(first, error, stop_after), 100)
  _, state, best, position = first[-1]
  growth.synthesize(plan, _actions(rest, error), state, best, position)
  assert first + rest == whole


def test_plans_that_cannot_be_are_refused():
  actions = _actions([], lambda n: 1.0)
  up = (growth.Milestone(5, 1), growth.Milestone(6, 1))
  with pytest.raises(ValueError, match="fewer and fewer"):
    growth.synthesize(PLAN._replace(milestones=up), actions, 1)
  with pytest.raises(ValueError, match="tune_epochs must be at least 1, got 0"):
    growth.synthesize(PLAN._replace(tune_epochs=0), actions, 1)
  with pytest.raises(ValueError, match="area_rounds must be at least 0, got -1"):
    growth.synthesize(PLAN._replace(area_rounds=-1), actions, 1)
  with pytest.raises(ValueError, match="prune_areas must be among the actions"):
    growth.synthesize(PLAN._replace(area_rounds=1), actions, 1)
