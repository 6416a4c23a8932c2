import numpy as np
import pytest

from sparsejax import analysis


def test_overlap_by_hand():
  a = {"x": np.array([[1, 1, 1, 0]], bool), "y": np.array([[1, 0], [0, 0]], bool)}
  b = {"x": np.array([[1, 0, 1, 1]], bool), "y": np.array([[0, 1], [0, 0]], bool)}
  found = analysis.overlap(a, b)
  assert found["x"][0] == pytest.approx(2 / 4)
  assert found["x"][1] == pytest.approx(0.5625 / 0.9375)  # 3/4 and 3/4
  assert found["y"][0] == 0
  assert found["all"][0] == pytest.approx(2 / 6)
  assert analysis.overlap(a, a)["all"][0] == 1
  with pytest.raises(ValueError, match="masks must have the same layers"):
    analysis.overlap(a, {"x": a["x"]})


def test_random_tickets_share_what_chance_says():
  rng = np.random.default_rng(0)
  a, b = (rng.random((300, 100)) < d for d in (0.2, 0.1))
  real, chance = analysis.overlap({"w": a}, {"w": b})["w"]
  assert real == pytest.approx(chance, abs=0.005)
  assert analysis.layer_densities({"w": a})["w"] == pytest.approx(0.2, abs=0.01)


def test_input_connectivity():
  mask = np.zeros((12, 5), bool)
  mask[7, :3] = True
  picture = analysis.input_connectivity(mask, (2, 3, 2))
  assert picture[1, 0, 1] == 3
  assert picture.sum() == 3
  with pytest.raises(ValueError, match="a row for each of the 9 pixels"):
    analysis.input_connectivity(mask, (3, 3))


def test_plots_hold_what_they_are_given():
  curves = {
    "one_shot": {0.5: [1.0, 2.0]},
    "ticket": {0.5: [2.0, 4.0], 0.2: [5.0, 5.0]},
  }
  axes = analysis.plot_tickets(curves, "accuracy", dense=[3.0, 4.0]).axes[0]
  lines = {line.get_label(): line for line in axes.lines}
  assert list(lines) == ["winning ticket", "one-shot", "dense"]
  assert lines["winning ticket"].get_xdata().tolist() == [50.0, 20.0]
  assert list(lines["winning ticket"].get_ydata()) == [3.0, 5.0]
  left, right = axes.get_xlim()
  assert left > right
  axes = analysis.plot_instability({0: [30.0], 100: [1.0]}).axes[0]
  assert list(axes.lines[0].get_ydata()) == [30.0, 1.0]
  with pytest.raises(ValueError, match="curves must contain"):
    analysis.plot_tickets({}, "accuracy")
  with pytest.raises(ValueError, match="values must contain"):
    analysis.plot_instability({})
