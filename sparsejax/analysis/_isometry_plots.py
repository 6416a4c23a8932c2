"""Plots of signal propagation: Jacobian spectra by depth, and the depth scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsejax.analysis._isometry import Spectrum
from sparsejax.analysis._plot_style import COLORS, INK, new_figure, style_axes


def plot_spectra(
  spectra: Mapping[str, Mapping[int, Spectrum]], floor: float = -12.0
) -> Any:
  """Plots the spectrum of the end-to-end Jacobian against depth, one color per name.

  A line shows the median singular value; the band covers all of them.

  Args:
    spectra: spectra by name of the initialization, then by depth.
    floor: log10 value; smaller values are drawn at the lower edge.

  Returns:
    A matplotlib figure. Needs the `train` extra.

  Raises:
    ValueError: there is nothing to draw.

  Example:
    >>> spectrum = Spectrum(np.array([0.0, -1.0]))
    >>> figure = plot_spectra({"delta": {10: spectrum, 100: spectrum}})
  """
  if not spectra or len(spectra) > len(COLORS):
    raise ValueError(
      f"spectra must contain 1 to {len(COLORS)} initializations, got {len(spectra)}."
    )
  figure, axes = new_figure()
  for i, (name, by_depth) in enumerate(spectra.items()):
    # Every second line is dashed, so that both of two coinciding lines are visible.
    color, dashes = COLORS[i], ("-", "--")[i % 2]
    depths = sorted(by_depth)
    logs = [np.nan_to_num(by_depth[d].log10, nan=floor, neginf=floor) for d in depths]
    low, middle, high = (
      np.maximum([f(values) for values in logs], floor)
      for f in (np.min, np.median, np.max)
    )
    axes.fill_between(depths, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(depths, middle, dashes, color=color, lw=2, marker="o", ms=4, label=name)
  axes.set_xscale("log")
  axes.set_ylim(floor, None)
  axes.set(xlabel="depth, layers", ylabel="singular values, log10")
  axes.set_title("Spectrum of the end-to-end Jacobian")
  style_axes(axes)
  figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
  return figure


def plot_depth_scale(
  depths: Sequence[int],
  weight_variances: Sequence[float],
  losses: np.ndarray,
  lengths: Sequence[float],
  chance: float = float(np.log(10)),
) -> Any:
  """Plots the loss after training over depth and sigma_w^2, with the theory's limit.

  Args:
    depths: (d,).
    weight_variances: (v,), sigma_w^2.
    losses: (d, v), NaN where training diverged.
    lengths: (v,), the correlation length at each variance; six times it is drawn as a
      line.
    chance: the loss of a network that has learned nothing.

  Returns:
    A matplotlib figure. Needs the `train` extra.

  Raises:
    ValueError: the shapes do not fit.

  Example:
    >>> figure = plot_depth_scale([10, 20], [0.9, 1.0], np.ones((2, 2)), [10, 500])
  """
  losses = np.asarray(losses, float)
  if losses.shape != (len(depths), len(weight_variances)):
    raise ValueError(
      f"losses must be of shape {(len(depths), len(weight_variances))}, got "
      f"{losses.shape}."
    )
  figure, axes = new_figure()
  values = np.clip(np.nan_to_num(losses, nan=chance), None, chance)
  mesh = axes.pcolormesh(
    np.asarray(weight_variances),
    np.asarray(depths),
    values,
    cmap="viridis_r",
    shading="nearest",
    vmax=chance,
  )
  bar = figure.colorbar(mesh, ax=axes, label="training loss")
  bar.outline.set_visible(False)
  bottom, top = axes.get_ylim()
  reach = np.minimum(6 * np.asarray(lengths, float), 100 * top)
  axes.plot(weight_variances, reach, "--", color="white", linewidth=3.5)
  axes.plot(weight_variances, reach, "--", color=COLORS[1], linewidth=2, label="6 ξ")
  axes.set_yscale("log")
  axes.set_ylim(max(bottom, min(depths) / 1.4), max(depths) * 1.2)
  axes.set(xlabel="σw²", ylabel="depth, layers")
  axes.set_title("What can be trained, and the theory's edge")
  style_axes(axes, grid="")
  axes.legend(loc="upper right", frameon=True)
  return figure
