import numpy as np
import pytest

from sparsejax.theory import _toy_problems as toy_problems


@pytest.mark.parametrize(
  ("number", "rows", "positive", "noisy"),
  [(1, 124, 216, 0), (2, 169, 142, 0), (3, 122, 228, 6)],
)
def test_monks_have_the_published_sizes(number, rows, positive, noisy):
  p = toy_problems.monk(number, seed=5)
  assert p.train_inputs.shape == (rows, 17)
  assert p.inputs.shape == (432, 17)
  assert len(np.unique(p.inputs, axis=0)) == 432
  assert (p.inputs.sum(1) == 6).all()
  assert p.labels.sum() == positive
  truth = {tuple(x): y for x, y in zip(p.inputs, p.labels, strict=True)}
  right = [truth[tuple(x)] for x in p.train_inputs]
  assert np.sum(right != p.train_labels) == noisy


def test_monk_3_by_hand():
  """a5 = 3 and a4 = 1 is true even with a2 = 3; a5 = 4 is false."""
  p = toy_problems.monk(3)
  columns = np.split(p.inputs, np.cumsum([3, 3, 2, 3, 4]), axis=1)
  a = [c.argmax(1) + 1 for c in columns]
  jackets = (a[4] == 3) & (a[3] == 1) & (a[1] == 3)
  assert p.labels[jackets].all()
  assert not p.labels[a[4] == 4].any()


def test_bad_number_is_named():
  with pytest.raises(ValueError, match="1, 2 or 3, got 4"):
    toy_problems.monk(4)
