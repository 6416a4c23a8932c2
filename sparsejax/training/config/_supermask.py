"""Sets the config fields that all supermask configs share."""

from ml_collections import config_dict

from sparsejax.training import _errors
from sparsejax.training.config._train_config import use_method

INITIALIZATIONS = {
  "signed_constant": "signed_kaiming_constant",
  "kaiming_normal": "kaiming_normal",
}
METHODS = {"edge_popup": "edge_popup", "bernoulli": "bernoulli_supermask"}


def use_variant(config: config_dict.ConfigDict, variant: str) -> None:
  """Sets the method, the density and the model's random weights from a variant.

  Call it after all other fields are set, because it overwrites `model_kwargs`, the
  fields of the method and, for `bernoulli`, the learning rate.

  Args:
    config: a config from `default_config` with its model set; changed in place.
    variant: words separated by commas: a key of `INITIALIZATIONS`, "scaled", a key of
      `METHODS`, the fraction kept. The defaults are signed_constant, unscaled,
      edge_popup and 0.5.

  Raises:
    ConfigError: if a word is none of these, or the fraction kept is not inside (0, 1).

  Example:
    >>> from sparsejax.training import default_config
    >>> config = default_config()
    >>> use_variant(config, "kaiming_normal,scaled,0.3")
    >>> config.density, config.model_kwargs.initialization_kwargs.density
    (0.3, 0.3)
  """
  initialization, method, kept, scaled = "signed_constant", "edge_popup", 0.5, False
  for word in filter(None, variant.split(",")):
    if word in INITIALIZATIONS:
      initialization = word
    elif word in METHODS:
      method = word
    elif word == "scaled":
      scaled = True
    else:
      kept = _kept(word)
  use_method(config, METHODS[method])
  config.density = kept
  if method == "bernoulli":
    # Zhou et al.'s rate for fully connected networks; the scores' gradients are small.
    config.learning_rate = 100.0
  config.model_kwargs = {
    "initialization": INITIALIZATIONS[initialization],
    "initialization_kwargs": {"density": kept} if scaled else {},
    "use_bias": False,
    "normalize": True,
  }


def _kept(word: str) -> float:
  """Parses the fraction of weights kept."""
  try:
    kept = float(word)
  except ValueError:
    known = ", ".join((*INITIALIZATIONS, "scaled", *METHODS))
    raise _errors.ConfigError(
      f"variant must be words of {known}, or the fraction kept; got {word!r}"
    ) from None
  if not 0 < kept < 1:
    raise _errors.ConfigError(
      f"the fraction kept must be inside (0, 1), for at 0 nothing is left and at 1"
      f" nothing to learn; got {word}"
    )
  return kept
