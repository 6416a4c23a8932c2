"""The share of live blocks up to which a loop over them is faster."""

# Multiply-adds that cost as much as finding the live blocks and starting the loop.
_SMALLEST = 2**25


def live_share(
  rows: int,
  shape: tuple[int, ...],
  block: tuple[int, int],
  itemsize: int,
  given: bool = False,
) -> float:
  """Returns the share of live blocks up to which the loop over them is faster.

  The shares were measured on a CPU by `scripts/benchmarks/execution.py`. The result is
  0 where the loop is never faster.

  Args:
    rows: the number of rows of the input, over all its leading axes.
    shape: the shape of the kernel as a matrix.
    block: inputs and outputs of one block.
    itemsize: bytes per weight; small products are slower in dtypes of two bytes.
    given: whether the live blocks are given, so that the kernel is not read for them.

  Returns:
    A number in [0, 1).
  """
  side = min(block)
  small = rows < 16 or rows * shape[0] * shape[1] < _SMALLEST
  if side < 32 or (small and not given):
    return 0.0
  share = 0.4 if side >= 128 else 0.25 if side >= 64 else 0.1
  return share / 2 if itemsize == 2 else share
