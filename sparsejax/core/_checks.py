"""Argument checks whose errors name the argument, the rule and the value.

A wrong type raises TypeError and a value out of range raises ValueError, before any
work is done. The values of traced arrays are not checked, only their types.
"""

import difflib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify


def shown(value: Any) -> str:
  """Returns a value for an error message, in one line: a tree of params has pages.

  Example:
    >>> shown({"dense": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}})
    "{'dense': {'bias': array([0., 0.]), 'kernel': array([[0., 0.], [0., 0.]])}}"
    >>> shown({"params": {"dense": {"kernel": np.zeros((2, 2))}}})
    "{'params': {'dense': {...}}}"
  """
  short = reprlib.Repr()
  short.maxlevel, short.maxdict, short.maxother = 2, 3, 60
  return " ".join(short.repr(value).split())


def did_you_mean(value: Any, known: Iterable[str]) -> str:
  """Returns "; did you mean 'x'?" for a name that is almost a known one, else "".

  Example:
    >>> did_you_mean("rigle", ["rigl", "snip"]), did_you_mean("adam", ["rigl", "snip"])
    ("; did you mean 'rigl'?", '')
  """
  close = difflib.get_close_matches(str(value), list(known), 1)
  return f"; did you mean {close[0]!r}?" if close else ""


def check_callable(name: str, value: Any, what: str, arguments: int) -> None:
  """Raises TypeError unless a value can be called with `arguments` arguments.

  Args:
    name: the argument's name.
    value: the value to check.
    what: what the value must be, in words.
    arguments: the number of positional arguments that it is called with.
  """
  if not callable(value):
    raise TypeError(f"{name} must be {what}, got {shown(value)}.")
  try:
    signature = inspect.signature(value)
  except (TypeError, ValueError):  # a builtin or a compiled function
    return
  try:
    signature.bind(*range(arguments))
  except TypeError as e:
    raise TypeError(f"{name} must be {what}, got {value!r}: {e}.") from None


def check_score(name: str, value: Any) -> None:
  """Raises TypeError unless a value can be called with `ScoreInputs`, as a score."""
  check_callable(name, value, "a function of the inputs, such as sj.magnitude", 1)


def check_optimizer(name: str, value: Any, what: str = "an optax optimizer") -> None:
  """Raises TypeError unless a value has optax's `init` and `update`."""
  for part in ("init", "update"):
    if not callable(getattr(value, part, None)):
      raise TypeError(f"{name} must be {what}, got {shown(value)}.")


def check_flag(name: str, value: Any) -> None:
  """Raises TypeError unless a value is True or False."""
  if not isinstance(value, (bool, np.bool_)):
    raise TypeError(f"{name} must be True or False, got {value!r}.")


def check_number(
  name: str, value: Any, rule: str, holds: Callable[[Any], bool]
) -> None:
  """Raises unless a value is a number that satisfies a rule.

  A JAX array must be a scalar; its value is not checked.

  Args:
    name: the argument's name.
    value: the value to check.
    rule: the rule in words, such as "be at least 0".
    holds: the rule as a function; it should return False for NaN.

  Raises:
    TypeError: the value is not a number.
    ValueError: the rule does not hold.

  Example:
    >>> check_number("l1", -1, "be at least 0", lambda v: v >= 0)
    Traceback (most recent call last):
      ...
    ValueError: l1 must be at least 0, got -1.
  """
  if isinstance(value, jax.Array):
    check_scalar(name, value)
    return
  if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
    raise TypeError(f"{name} must be a number, got {value!r}.")
  if not holds(value):
    raise ValueError(f"{name} must {rule}, got {value}.")


def may_be_nonzero(value: Any) -> bool:
  """Returns False for a Python 0, and True for arrays, whose value may be traced."""
  return isinstance(value, jax.Array) or bool(value)


def check_scalar(name: str, value: jax.Array) -> None:
  """Raises TypeError unless a JAX array, traced or not, is a single number."""
  if value.ndim or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
    got = f"{value.dtype}{list(value.shape)}"
    raise TypeError(f"{name} must be a single number, got {got}.")


def check_integer(name: str, value: Any, least: int | None = None) -> None:
  """Raises TypeError or ValueError unless a value is an integer of at least `least`."""
  if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
    raise TypeError(f"{name} must be an integer, got {value!r}.")
  if least is not None and value < least:
    raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_tuple(name: str, value: Any, length: int) -> None:
  """Raises TypeError or ValueError unless a value is `length` positive integers."""
  if not isinstance(value, (tuple, list)) or len(value) != length:
    raise TypeError(f"{name} must be {length} integers, got {value!r}.")
  for n in value:
    check_integer(name, n, 1)


def check_key(name: str, value: Any) -> None:
  """Raises TypeError unless a value is a single PRNG key, typed or raw."""
  if isinstance(value, jax.Array):
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.ndim == 0:
      return
    if value.dtype == jnp.uint32 and value.ndim == 1:
      return
    value = f"{value.dtype}{list(value.shape)}"
  raise TypeError(f"{name} must be a PRNG key, such as jax.random.key(0), got {value}.")


def check_regex(name: str, value: Any, rule: str = "be a valid regex") -> None:
  """Raises TypeError or ValueError unless a value is a regular expression."""
  if not isinstance(value, str):
    raise TypeError(f"{name} must {rule}, got {value!r}.")
  try:
    re.compile(value)
  except re.error as e:
    raise ValueError(f"{name} must {rule}, got {value!r}: {e}.") from None


def check_mapping(name: str, value: Any, what: str) -> None:
  """Raises TypeError unless a value is a mapping.

  Args:
    name: the argument's name.
    value: the value to check.
    what: what it must map from and to, in words.
  """
  if not isinstance(value, Mapping):
    raise TypeError(f"{name} must be a mapping {what}, got {value!r}.")


def check_value(holds: Any, message: str) -> None:
  """Raises ValueError unless a rule about array values holds.

  Under `jax.jit` values cannot be read, so the check does nothing, unless the function
  is transformed by `checkify.checkify`, whose error then has the message.

  Args:
    holds: a bool or a bool scalar, possibly traced.
    message: the text of the error.

  Raises:
    ValueError: the rule does not hold.

  Example:
    >>> check_value(False, "damping must be at least 0, got -1.")
    Traceback (most recent call last):
      ...
    ValueError: damping must be at least 0, got -1.
  """
  if isinstance(holds, Tracer):
    checkify.debug_check(holds, message)
  elif not bool(holds):
    raise ValueError(message)


def check_finite(name: str, value: jax.Array) -> None:
  """Raises ValueError if an array has NaN or infinity; see `check_value` for tracing.

  Args:
    name: the argument's name.
    value: float array of any shape, possibly traced.

  Raises:
    ValueError: an element is not finite.

  Example:
    >>> check_finite("hessian", jnp.array([[1.0, jnp.nan]]))
    Traceback (most recent call last):
      ...
    ValueError: hessian must be finite, got nan at [0, 1].
  """
  finite = jnp.isfinite(value)
  if isinstance(finite, Tracer):
    check_value(jnp.all(finite), f"{name} must be finite, got NaN or infinity.")
  elif not bool(jnp.all(finite)):
    at = np.unravel_index(int(jnp.argmin(finite)), finite.shape)
    index = tuple(int(i) for i in at)
    raise ValueError(f"{name} must be finite, got {value[index]} at {list(index)}.")
