"""Archives of arrays: what is written is what numpy reads."""

import numpy as np
import pytest

from sparsejax.core._io import read_archive, write_archive


def test_an_archive_holds_its_arrays_and_nothing_else(tmp_path):
  # Names that are arguments of `np.savez`, too.
  arrays = {"file": np.arange(6).reshape(2, 3), "allow_pickle": np.float32(0.5)}
  file = tmp_path / "arrays.npz"
  write_archive(file, arrays)
  with np.load(file, allow_pickle=False) as loaded:
    assert loaded.files == list(arrays)
  found = read_archive(file, "write_archive")
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_objects_are_refused_and_what_was_there_stays(tmp_path):
  file = tmp_path / "arrays.npz"
  write_archive(file, {"a": np.ones(2)})
  with pytest.raises(ValueError, match="Object arrays cannot be saved"):
    write_archive(file, {"a": np.array([{}], object)})
  np.testing.assert_array_equal(read_archive(file, "write_archive")["a"], np.ones(2))
  assert [path.name for path in tmp_path.iterdir()] == ["arrays.npz"]
