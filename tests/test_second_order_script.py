"""The published training rows of the MONK's problems are read as they are."""

from scripts.reproduce.second_order import small_nets


def test_published_rows(tmp_path):
  text = " 1 1 1 1 1 3 1 data_5\n 0 3 2 2 3 4 2 data_432\n"
  (tmp_path / "monks-1.train").write_text(text)
  problem = small_nets.published_rows(1, tmp_path)
  assert problem.train_labels.tolist() == [True, False]
  assert problem.train_inputs.shape == (2, 17)
  # One-hot: attributes of 3, 3, 2, 3, 4 and 2 values.
  first, second = (row.nonzero()[0].tolist() for row in problem.train_inputs)
  assert first == [0, 3, 6, 8, 13, 15]
  assert second == [2, 4, 7, 10, 14, 16]
  assert problem.inputs.shape == (432, 17)
