"""One optimizer with different methods for different layers."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from sparsejax.core import (
  check_mapping,
  check_optimizer,
  check_regex,
  is_placeholder,
  named_leaves,
)

Method = Callable[[optax.GradientTransformation], optax.GradientTransformation]
_REST = "everything else"


def by_path(
  inner: optax.GradientTransformation,
  methods: Mapping[str, Method | optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
  """Trains groups of leaves, selected by path, with different methods and densities.

  leaf -> methods[pattern](inner) for the one pattern found in its path, else inner

  The groups are separated by `optax.partition`: each has its own budgets and its own
  copy of the inner optimizer. A transformation that needs all gradients at once, such
  as `optax.clip_by_global_norm`, belongs outside: `optax.chain(clip, sj.by_path(...))`.
  Leaves in no group stay dense, and so do biases in a group (by the method's `where`).

  Args:
    inner: any optax optimizer, used for all leaves.
    methods: a mapping from a regular expression, searched for in each slash-separated
      path, to a function from `inner` to a sparse optimizer, such as
      `functools.partial(sj.rigl, density=0.1)`; or to an optimizer, used as it is.

  Returns:
    An optax transformation; `sj.masks` of its state has the whole tree of the params.

  Raises:
    TypeError: inner is not an optimizer, methods is not a mapping from regexes, or a
      method is neither a function nor an optimizer.
    ValueError: methods is empty or a pattern is not a regular expression; in `init`,
      two patterns match one leaf, or a pattern matches no leaf.

  Example:
    >>> import functools, jax.numpy as jnp, optax, sparsejax as sj
    >>> tx = sj.by_path(
    ...   optax.adam(1e-3),
    ...   {
    ...     "body": functools.partial(sj.rigl, density=0.25),
    ...     "head": functools.partial(sj.static_sparse, density=0.5),
    ...   },
    ... )
    >>> params = {name: jnp.ones((4, 4)) for name in ("body", "head", "stem")}
    >>> masks = sj.masks(tx.init(params))
    >>> int(masks["body"].sum()), int(masks["head"].sum()), masks["stem"] is None
    (4, 8, True)
  """
  check_optimizer("inner", inner)
  check_mapping("methods", methods, "from a regex to a method")
  if not methods:
    raise ValueError("methods must name at least one group, got an empty mapping.")
  # Build the optimizer of each group.
  transforms: dict[str, Any] = {}
  for pattern, method in methods.items():
    check_regex("methods", pattern, "have valid regexes as keys")
    made: Any = method
    if not hasattr(method, "init") and callable(method):
      made = method(inner)
    if not callable(getattr(made, "init", None)):
      raise TypeError(
        "methods must contain functions from an optimizer to a sparse one, or "
        f"optimizers, got {method!r} for {pattern!r}."
      )
    transforms[pattern] = made

  # Labels each leaf for `optax.partition`, by the one pattern that matches its path.
  def label(params):
    if is_placeholder(params):
      return params
    paths = [path for path, _ in named_leaves(params)]
    unused, labels = set(methods), []
    for name in paths:
      hits = [pattern for pattern in methods if re.search(pattern, name)]
      if len(hits) > 1:
        raise ValueError(
          f"methods must not overlap, got {name!r} matched by each of {hits}."
        )
      unused -= set(hits)
      labels.append(hits[0] if hits else _REST)
    if unused:
      raise ValueError(
        f"methods must match leaves, got {sorted(unused)}, which match none of {paths}."
      )
    return jax.tree.structure(params).unflatten(labels)

  return optax.partition({**transforms, _REST: inner}, label)
