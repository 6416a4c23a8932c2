"""The sparse optimizer: a mask transform around any optax optimizer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax.core import (
  DenseGradients,
  Distribution,
  InputAxes,
  MaskTransform,
  Moments,
  ScoreInputs,
  SparseState,
  Stacked,
  Topology,
  Where,
  align,
  boxed_like,
  check_flag,
  check_input_axes,
  check_number,
  check_optimizer,
  check_stacked,
  check_where,
  choose,
  is_placeholder,
  layer_axes,
  path_string,
  replicated,
  selected,
  unboxed,
  update_or_zero,
  without_statics,
)
from sparsejax.core import select_masked as select
from sparsejax.core.structures import Structure
from sparsejax.distributions import check_density, check_distribution, uniform
from sparsejax.transforms._condensed import (
  Condensed,
  check_condensed,
  first_capacities,
  units_of,
)
from sparsejax.transforms._inner import (
  check_inner,
  check_params,
  mask_stored_params,
  stores_params,
)
from sparsejax.transforms._moments import (
  complete,
  factories_of,
  fill_dead_second_moments,
  find_moments,
  surely_holds_momentum,
  wide_zeros,
)
from sparsejax.transforms._start import (
  check_layers,
  check_structure,
  shard_state_like_params,
  start,
)
from sparsejax.transforms._when import (
  check_schedule,
  check_update_masks,
  mask_update_due,
)

Array = jax.Array


def sparsify(
  inner: optax.GradientTransformation,
  mask_transform: MaskTransform,
  density: Any = None,
  *,
  update_every: int | None = 100,
  start_step: int = 0,
  end_step: int | None = None,
  distribution: Distribution = uniform,
  where: Where = None,
  stacked: Stacked = False,
  input_axes: InputAxes = None,
  seed: Any = 0,
  mask_gradients: bool = False,
  momentum_decay: float | None = None,
  structure: Structure | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Turns any optax optimizer into one that trains a sparse network.

  u = inner(g);  if due: masks = mask_transform(...);  update = u where live, else -p

  u is the inner optimizer's update and p a param: `optax.apply_updates` leaves masked
  weights at exactly zero, whatever the inner optimizer does. The update of a sparsified
  leaf has the dtype of p + u, because -p would be rounded in a narrower dtype. In step
  c + 1, after c updates, a mask update is due if c + 1 > start_step,
  (c + 1 - start_step) % update_every == 0 and c + 1 <= end_step.

  Args:
    inner: any optax optimizer. Its update is computed at every step. A copy of the
      params in its state, as `optax.contrib.schedule_free` and `optax.contrib.dog`
      keep, is zero where masked, as the params are.
    mask_transform: changes the masks and budgets when a mask update is due.
    density: fraction of weights kept, in (0, 1], at the start, a float or a traced
      scalar; None starts with all weights live.
    update_every: steps between mask updates; None for no schedule: masks then change
      only when `update_masks=True` is passed to the update.
    start_step: steps before the schedule of mask updates begins.
    end_step: no mask update after this step; None for no limit.
    distribution: sets the budget of each layer at the start.
    where: which leaves are sparsified: a tree of bools, a regular expression searched
      for in slash-separated paths, or `(path, leaf) -> bool`; None selects kernels
      (rank 2 or more; no bias, normalization or embedding). Evaluated in `init` and
      kept in the state.
    stacked: which leaves stack several layers, each with its own budget: for layers
      along the first axis (as in `jax.lax.scan`) given as `where` is; for other axes a
      dict from a regular expression to the axis or axes, such as `{"layers/": 1}`, or
      `(path, leaf) -> bool, axis or axes`. False for none.
    input_axes: which axes of a kernel are its inputs, over which its products sum, for
      kernels that `core.kernel_axes` does not know: a dict from a regular expression to
      the axis or axes, such as `{"proj/kernel": (0, 1)}`, or
      `(path, leaf) -> axes or None`. All other axes are outputs, unless
      `sj.KernelAxes(inputs, outputs)` leaves some as taps. Axes are those of the whole
      leaf, stacked axes included.
    seed: seed of the first masks and of random scores; an integer, may be traced.
    mask_gradients: whether the gradients of masked weights are zeroed before the inner
      optimizer receives them; scores get dense gradients either way. If True, masks
      are updated before the inner optimizer's step, with its moments from before that
      step; if False after it, with its moments from after it. If True, a grown weight
      starts with the moments of a weight whose gradients were zero. Only under
      `optax.contrib.acprop`, which divides by the previous second moment, it starts
      with the mean second moment of its layer's live weights, and its first step is
      at most one learning rate long; see `fill_dead_second_moments`.
    momentum_decay: unless one state of the inner optimizer has the momentum of all
      sparsified leaves, keep a running average m = decay m + g of the gradients, in
      float32 or wider, and pass it to scores as `inputs.moments`; None keeps none. So
      leaves whose optimizers differ (`optax.partition` of sgd and adam) have scores
      of one kind. Gradient entries that are not finite are left out of it.
    structure: which patterns of live weights are allowed, such as `sj.n_m(2, 4)`; None
      for any. Budgets are rounded to numbers that the structure allows.

  Returns:
    An optax transformation with a `SparseState`. Its update requires `params` and
    takes an optional `update_masks=flag` that overrides the schedule.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is outside its range; no leaf is selected; the structure
      does not fit the transform, the density or a leaf; in `init`, the inner optimizer
      is already sparse or never updates a selected leaf (`optax.set_to_zero`), or
      params are `optax.LookaheadParams`.

  Example:
    >>> import optax, sparsejax as sj
    >>> transform = sj.chain(sj.drop(sj.magnitude, 0.3), sj.grow(sj.random))
    >>> tx = sj.sparsify(optax.sgd(0.1), transform, density=0.1)
  """
  # Validate every argument that can be checked without params.
  check_optimizer("inner", inner)
  if not isinstance(mask_transform, MaskTransform):
    raise TypeError(f"mask_transform must be a MaskTransform, got {mask_transform!r}.")
  if density is not None:
    check_density(density)
  schedule = check_schedule(update_every, start_step, end_step)
  check_distribution(distribution)
  check_where("where", where)
  check_stacked(stacked)
  check_input_axes(input_axes)
  _check_seed(seed)
  check_flag("mask_gradients", mask_gradients)
  if momentum_decay is not None:
    rule = "lie in [0, 1]"
    check_number("momentum_decay", momentum_decay, rule, lambda v: 0 <= v <= 1)
  check_structure(structure, density, distribution)
  is_condensed = isinstance(inner, Condensed)
  if is_condensed:
    check_condensed(mask_gradients, mask_transform)
  # The names of the functions that built `inner` tell apart optimizers whose states
  # have the same type; see `find_moments`.
  factories = factories_of(inner)
  divides_by_previous = not factories.isdisjoint(("scale_by_acprop", "acprop"))
  inner = optax.with_extra_args_support(inner)

  def dense_gradients(count):
    """Tells `sj.mark_dead` which gradients the update after `count` others uses."""
    step = jnp.asarray(optax.safe_increment(count))
    due = mask_update_due(step, None, schedule)
    always = not mask_gradients or mask_transform.observe is not None
    return DenseGradients(
      always=jnp.asarray(always), due=jnp.asarray(False if due is None else due)
    )

  def init_fn(params):
    # `optax.tree_map_params` passes a placeholder, to find out where the state has
    # trees like the params.
    if is_placeholder(params):
      return _map_of_state(params)
    # Find the leaves to sparsify and the roles of their axes, and validate both.
    check_params(params)
    chosen = selected(params, where)
    kernels = choose(params, chosen)
    axes = layer_axes(params, chosen, stacked, input_axes)
    check_layers(structure, mask_transform, axes)
    # Draw the first masks. A Python density is a static argument of the compiled
    # function, a traced one an operand.
    traced = density if isinstance(density, jax.Array) else None
    masks, budgets, seed_ = start(
      kernels,
      jnp.array(seed, jnp.int32),  # a copy, for the state may be donated
      traced,
      density=density if traced is None else None,
      distribution=distribution,
      axes=axes,
      structure=structure,
    )
    # Initialize the inner optimizer on all params, dense ones included.
    if is_condensed:
      capacities = first_capacities(axes, density, distribution, structure)
      units = units_of(axes, structure, capacities)
      init: Any = inner.init  # takes the masks too
      inner_state = init(params, masks, units)
    else:
      inner_state = inner.init(params)
      check_inner(inner, inner_state, params, chosen, factories)
    inner_state = shard_state_like_params(inner_state, params)
    # Keep a running average of the gradients only if `inner` keeps no momentum.
    average = None
    if momentum_decay is not None:
      moments = find_moments(inner_state, params, chosen, factories)
      if not complete(moments, params, chosen):
        average = shard_state_like_params(jax.tree.map(wide_zeros, kernels), params)
      elif not surely_holds_momentum(inner_state):
        # `_map_of_state` cannot tell; a tree without arrays fits its answer.
        average = jax.tree.map(lambda leaf: None, kernels)
    count = jnp.zeros((), jnp.int32)
    return SparseState(
      count=count,
      seed=seed_,
      masks=masks,
      budgets=unboxed(budgets),
      skipped=jnp.zeros((), jnp.int32),
      average=average,
      transform_state=shard_state_like_params(mask_transform.init(kernels), params),
      inner_state=inner_state,
      dense_gradients=dense_gradients(count),
    )

  def _map_of_state(placeholder):
    """Returns a state with the placeholder at every tree that is like the params."""
    inner_state = inner.init(placeholder)
    averages = momentum_decay is not None and not surely_holds_momentum(inner_state)
    count = jnp.zeros((), jnp.int32)
    return SparseState(
      count=count,
      seed=jnp.array(seed, jnp.int32),
      masks=placeholder,
      budgets=jnp.zeros((), jnp.int32),
      skipped=jnp.zeros((), jnp.int32),
      average=placeholder if averages else None,
      transform_state=mask_transform.init(placeholder),
      inner_state=inner_state,
      dense_gradients=dense_gradients(count),
    )

  # Compiled once per optimizer: in a loop without `jit`, a `cond` on closures that are
  # new at every step would be compiled at every step. Under an outer `jit` it is
  # inlined.
  @functools.partial(jax.jit, static_argnames="axes", inline=True)
  def update_if_due(due, inputs, budgets, skipped, before, axes):
    """Runs the mask transform if due; keeps the old masks if scores are not finite."""
    old = (inputs.masks, budgets, skipped, before)

    def transform():
      finite = jnp.asarray(True)
      topology = Topology(inputs.masks, budgets, finite, structure, axes)
      topology, after = mask_transform.update(inputs, topology, before)
      # If a score was NaN or +inf, undo this mask update and count it as skipped.
      new = jax.tree.map(replicated, topology.budgets)
      new = (topology.masks, new, skipped, after)
      skip = (*old[:2], optax.safe_increment(skipped), before)
      return jax.tree.map(lambda a, b: jnp.where(topology.finite, a, b), new, skip)

    return lax.cond(due, transform, lambda: old)

  def update_fn(updates, state, params=None, *, update_masks=None, **extra_args):
    # Validate the arguments. The leaves with a mask are those selected in `init`.
    params = without_statics(params, updates)
    grads = updates
    check_update(grads, state, params, update_masks)
    chosen = [m is not None for m in align(params, state.masks)]
    # Masks that were packed, or set by the user, may have lost the containers (boxes)
    # of the params.
    old_masks = boxed_like(state.masks, choose(params, chosen))
    # `due` is None where the masks cannot change, otherwise a bool, possibly traced.
    step = jnp.asarray(optax.safe_increment(state.count))
    due = mask_update_due(step, update_masks, schedule)

    # Collects what scores may use. The moments are those of `inner_state`, or the
    # running average if one is kept.
    def score_inputs(inner_state, average):
      if not jax.tree.leaves(average):
        moments = find_moments(inner_state, params, chosen, factories)
      else:
        moments = Moments(average, _none_like(average))
      return ScoreInputs(
        params=choose(params, chosen),
        grads=choose(grads, chosen),
        moments=moments,
        masks=old_masks,
        key=jax.random.fold_in(jax.random.key(state.seed), state.count),
        step=step,
      )

    # A transform that follows every step (`accumulate`) reads this step's gradients
    # now, whether or not a mask update is due.
    before = state.transform_state
    if mask_transform.observe is not None:
      inputs = score_inputs(state.inner_state, state.average)
      before = mask_transform.observe(inputs, before)

    # Returns masks, budgets, the count of skipped mask updates, and the transform's
    # state.
    def update_topology(inner_state, average):
      # Stacked layers may be sharded over devices; every device gets all budgets.
      budgets = jax.tree.map(replicated, boxed_like(state.budgets, old_masks))
      if due is None:
        return old_masks, budgets, state.skipped, before
      # The inner optimizer's update stays outside of the conditional: as its operand,
      # the update would be written to memory at every step, due or not.
      inputs = score_inputs(inner_state, average)
      axes = layer_axes(params, chosen, stacked, input_axes)
      return update_if_due(due, inputs, budgets, state.skipped, before, axes)

    # An optimizer that keeps a copy of the params was given dense ones at `init`: mask
    # its copy, and the params that it compares with it.
    inner_params, stored = params, stores_params(state.inner_state)
    if stored:
      inner_state = mask_stored_params(state.inner_state, params, old_masks)
      state = state._replace(inner_state=inner_state)
      inner_params = _where_live(align(params, old_masks), params, zeros=True)
    # Update the masks and run the inner optimizer, in one of two orders. Both apply
    # only the new masks: if the old ones were applied too, both would be copied at
    # every step.
    average = state.average
    if mask_gradients:
      # Masks first, with the moments from before this step; then the inner optimizer,
      # on gradients that are zero where the new masks are False.
      masks, budgets, skipped, after = update_topology(state.inner_state, average)
      live = align(params, masks)
      if is_condensed:
        # It takes the live gradients itself, and moves its moments at mask updates.
        axes = layer_axes(params, chosen, stacked, input_axes)
        places = jax.tree.leaves(state.inner_state.places)
        updates, inner_state = inner.update(
          grads,
          state.inner_state,
          params,
          masks=masks,
          due=due,
          units=units_of(axes, structure, [p.size for p in places]),
          **extra_args,
        )
      else:
        masked, inner_state = _where_live(live, grads, zeros=True), state.inner_state
        # ACProp divides by second moments that newly grown weights do not have yet.
        if divides_by_previous:
          inner_state = fill_dead_second_moments(
            inner_state, masked, params, old_masks, state.budgets
          )
        updates, inner_state = inner.update(
          masked, inner_state, inner_params, **extra_args
        )
      average = _accumulate(average, grads, chosen)
    else:
      # The inner optimizer first, on dense gradients; then the masks, with the moments
      # from after this step.
      updates, inner_state = inner.update(
        grads, state.inner_state, inner_params, **extra_args
      )
      average = _accumulate(average, grads, chosen)
      masks, budgets, skipped, after = update_topology(inner_state, average)
      live = align(params, masks)
    if stored:
      inner_state = mask_stored_params(inner_state, params, masks)
    # Emit the update that takes masked weights to exactly zero.
    return _where_live(live, updates, params), SparseState(
      count=step,
      seed=state.seed,
      masks=masks,
      budgets=unboxed(budgets),
      skipped=skipped,
      average=average,
      transform_state=after,
      inner_state=inner_state,
      dense_gradients=dense_gradients(step),
    )

  def _accumulate(average, grads, chosen):
    """Adds the gradients to the running average, if one is kept."""
    if not jax.tree.leaves(average):
      return average

    def add(m, g):
      # A gradient that is not finite would make the average NaN or infinite for good.
      g = jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)).astype(m.dtype)
      return jnp.asarray(momentum_decay, m.dtype) * m + g

    return jax.tree.map(add, average, choose(grads, chosen))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _where_live(entries, updates, params=None, zeros=False):
  """Returns the updates where live; elsewhere zero (if `zeros`) or -p."""
  leaves, treedef = jax.tree.flatten(updates)
  if len(leaves) != len(entries):
    raise ValueError(
      f"updates must have the params' structure: {len(entries)} leaves, got "
      f"{len(leaves)}."
    )
  values = leaves if zeros else jax.tree.leaves(params)
  out = []
  for mask, u, p in zip(entries, leaves, values, strict=True):
    if mask is None:
      out.append(u)
    elif zeros:
      out.append(select(mask, u, jnp.zeros_like(u)))
    else:
      out.append(update_or_zero(mask, u, p))
  return treedef.unflatten(out)


def _none_like(tree):
  """Returns the same containers, boxes included, with None in place of every array."""
  return jax.tree.structure(tree).unflatten([None] * len(jax.tree.leaves(tree)))


def check_update(updates, state, params, update_masks) -> None:
  """Validates the arguments of an update against the state.

  Args:
    updates: the gradients.
    state: a `SparseState`.
    params: the params.
    update_masks: the flag that overrides the schedule; see `sparsify`.

  Raises:
    TypeError: state is not a `SparseState`, or update_masks is not a bool.
    ValueError: params are missing, or updates have another structure or other shapes.
  """
  if not isinstance(state, SparseState):
    raise TypeError(
      f"state must be the SparseState returned by init, got {type(state).__name__}."
    )
  if params is None:
    raise ValueError(
      "params must be passed to update: tx.update(grads, opt_state, params); got None."
    )
  check_update_masks(update_masks)
  align(params, state.masks)  # raises for params of another structure than init's
  got, wanted = _shapes(updates), _shapes(params)
  if got != wanted:
    raise ValueError(f"updates must have the params' shapes {wanted}, got {got}.")


def _shapes(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_string(path): jnp.shape(leaf) for path, leaf in leaves}


def _check_seed(seed) -> None:
  if not isinstance(seed, (int, np.integer, jax.Array)) or isinstance(seed, bool):
    raise TypeError(f"seed must be an integer, got {seed!r}.")
  if isinstance(seed, jax.Array):
    if seed.ndim or not jnp.issubdtype(seed.dtype, jnp.integer):
      raise TypeError(f"seed must be one integer, got {seed.dtype}{list(seed.shape)}.")
  elif not -(2**31) <= seed < 2**31:
    raise ValueError(f"seed must fit into 32 bits, got {seed}.")
