"""Random changes to a batch of images, drawn from a key inside the compiled step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.training import errors

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
  """Pads each image by reflection and cuts a window of the old size at random.

  Args:
    key: a PRNG key.
    images: (n, height, width, channels) of any dtype.
    padding: pixels added on each side; a window starts at 0 to 2 padding.

  Returns:
    (n, height, width, channels), each image shifted by its own offset.
  """
  n, height, width, channels = images.shape
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(images, sides, mode="reflect")
  starts = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)

  def window(image, start):
    corner = (start[0], start[1], jnp.zeros_like(start[0]))
    return jax.lax.dynamic_slice(image, corner, (height, width, channels))

  return jax.vmap(window)(padded, starts)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability one half.

  Args:
    key: a PRNG key.
    images: (n, height, width, channels) of any dtype.

  Returns:
    The same shape and dtype.
  """
  mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def _crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  key_crop, key_flip = jax.random.split(key)
  return flip(key_flip, crop(key_crop, images, 4))


AUGMENTATIONS: dict[str, Augmentation] = {
  "none": lambda key, images: images,
  "shift": lambda key, images: crop(key, images, 2),
  "crop_flip": _crop_flip,
}


def get(name: str) -> Augmentation:
  """Returns the augmentation of that name.

  Args:
    name: `"none"`, `"shift"` (by up to two pixels) or `"crop_flip"` (the usual one for
      CIFAR: pad by four, crop, mirror).

  Returns:
    A function `(key, images) -> images`.

  Raises:
    ConfigError: if the name is none of these.
  """
  if name not in AUGMENTATIONS:
    raise errors.ConfigError(
      f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {name!r}"
    )
  return AUGMENTATIONS[name]
