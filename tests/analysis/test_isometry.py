"""Spectra of end-to-end Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import initializers
from sparsejax.analysis import _isometry as isometry
from sparsejax.analysis import _isometry_plots as isometry_plots
from sparsejax.models import VanillaCNN

KEY = jax.random.key(0)


def trunk(init, depth=30, c=4, **kwargs):
  model = VanillaCNN(depth=depth, channels=c, **kwargs)
  kernel = jax.jit(init, static_argnums=1)(KEY, (depth, 3, 3, c, c))
  params = {"kernel": kernel, "bias": jnp.zeros((depth, c))}
  x = jax.random.normal(jax.random.key(1), (3, 3, c)) * model.q0**0.5
  return model, params, x


def test_end_to_end_is_the_jacobian():
  init = initializers.gaussian(1.0, stacked=True)
  model, params, x = trunk(init, depth=4, input_variance=1.0)

  def run(h):
    for i in range(4):
      h = model.layer(jax.tree.map(lambda p, i=i: p[i], params), h)
    return h

  jacobian = jax.jit(jax.jacrev(run))(x).reshape(x.size, x.size)
  want = np.linalg.svd(jacobian, compute_uv=False)
  got = isometry.end_to_end(model.layer, params, x)
  np.testing.assert_allclose(10**got.log10, want, rtol=1e-3, atol=1e-6 * want[0])
  [first] = isometry.single_layers(model.layer, params, x, [0])
  weights = jax.tree.map(lambda p: p[0], params)
  jacobian = jax.jit(jax.jacrev(lambda h: model.layer(weights, h)))(x)
  jacobian = jacobian.reshape(x.size, x.size)
  np.testing.assert_allclose(
    10**first.log10, np.linalg.svd(jacobian, compute_uv=False), rtol=1e-3, atol=1e-6
  )


def test_delta_orthogonal_stays_isometric_and_gaussian_does_not():
  found = {}
  for name, init in (
    ("delta", initializers.delta_orthogonal(stacked=True)),
    ("sparse", initializers.sparse_orthogonal(0.5, stacked=True)),
    ("gaussian", initializers.gaussian(1.0, stacked=True)),
  ):
    model, params, x = trunk(init, depth=400)
    found[name] = isometry.end_to_end(model.layer, params, x)
  for name in ("delta", "sparse"):
    assert found[name].condition_number < 20
    assert 0.4 < found[name].median < 1
  # Below the smallest float32: only logarithms reach there.
  assert found["gaussian"].log10_median < -45


def test_figures_are_drawn():
  spectrum = isometry.Spectrum(np.array([0.0, -1.0, -np.inf]))
  figure = isometry_plots.plot_spectra({"a": {10: spectrum, 100: spectrum}})
  assert len(figure.axes[0].lines) == 1
  losses = np.array([[0.1, np.nan], [1.0, 2.0]])
  figure = isometry_plots.plot_depth_scale([10, 20], [0.9, 1.0], losses, [5, np.inf])
  assert figure.axes[0].get_yscale() == "log"
  with pytest.raises(ValueError, match=r"\(1, 2\)"):
    isometry_plots.plot_depth_scale([10], [0.9, 1.0], losses, [5, 6])


def test_bad_input_is_named():
  with pytest.raises(ValueError, match=r"\(2,\) to \(1,\)"):
    isometry.end_to_end(lambda w, h: h[:1], jnp.ones((3, 1)), jnp.ones(2))
  with pytest.raises(IndexError, match=r"\[0, 3\)"):
    isometry.single_layers(lambda w, h: h * w, jnp.ones((3, 1)), jnp.ones(2), [3])
