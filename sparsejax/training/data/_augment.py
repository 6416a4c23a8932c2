"""Random changes to a batch of images, drawn from a key inside the compiled step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.training import _errors

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


def affine(
  key: jax.Array,
  images: jax.Array,
  degrees: float = 7.5,
  scale: float = 0.06,
  shear: float = 0.075,
  shift: float = 1.0,
) -> jax.Array:
  """Turns, stretches, shears and shifts each image at random, about its center.

  x' = R(t) [[1, h], [0, 1]] diag(s1, s2) x + d, by bilinear interpolation

  What is beyond the border is black. Each of the six numbers is uniform.

  Args:
    key: a PRNG key.
    images: (n, height, width, channels) of any dtype.
    degrees: t is at most so much, either way.
    scale: s1 and s2 are in 1 - scale to 1 + scale.
    shear: h is at most so much, either way.
    shift: d is at most so many pixels on each axis, either way.

  Returns:
    float32 (n, height, width, channels).
  """
  n, height, width, channels = images.shape
  most = jnp.array([jnp.pi * degrees / 180, scale, scale, shear, shift, shift])
  drawn = jax.random.uniform(key, (n, 6), jnp.float32, -1.0, 1.0) * most[None]
  t, s1, s2, h, d1, d2 = (x[:, None, None] for x in drawn.T)
  cos, sin = jnp.cos(t), jnp.sin(t)
  a, b = cos * (1 + s1), (cos * h - sin) * (1 + s2)
  c, d = sin * (1 + s1), (sin * h + cos) * (1 + s2)
  rows, columns = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
    jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
    indexing="ij",
  )
  rows, columns = rows[None], columns[None]
  x = a * columns + b * rows + d1 + (width - 1) / 2
  y = c * columns + d * rows + d2 + (height - 1) / 2
  # A black border of one pixel stands for all that lies outside.
  sides = ((0, 0), (1, 1), (1, 1), (0, 0))
  padded = jnp.pad(images.astype(jnp.float32), sides).reshape(n, -1, channels)
  x, y = jnp.clip(x + 1, 0, width + 1), jnp.clip(y + 1, 0, height + 1)
  x0 = jnp.clip(jnp.floor(x), 0, width)
  y0 = jnp.clip(jnp.floor(y), 0, height)
  x, y = (x - x0).reshape(n, -1, 1), (y - y0).reshape(n, -1, 1)
  stride = width + 2
  corner = (y0 * stride + x0).astype(jnp.int32).reshape(n, -1, 1)

  def at(offset):
    return jnp.take_along_axis(padded, corner + offset, axis=1)

  top = at(0) * (1 - x) + at(1) * x
  bottom = at(stride) * (1 - x) + at(stride + 1) * x
  return (top * (1 - y) + bottom * y).reshape(images.shape)


def _crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  key_crop, key_flip = jax.random.split(key)
  return flip(key_flip, crop(key_crop, images, 4))


AUGMENTATIONS: dict[str, Augmentation] = {
  "none": lambda key, images: images,
  "shift": lambda key, images: crop(key, images, 2),
  "affine": affine,
  "affine_strong": functools.partial(
    affine, degrees=11.0, scale=0.09, shear=0.11, shift=1.5
  ),
  "crop_flip": _crop_flip,
}


def get(name: str) -> Augmentation:
  """Returns the augmentation of that name.

  Args:
    name: `"none"`, `"shift"` (by up to two pixels), `"affine"` and `"affine_strong"`
      (distortion, for digits) or `"crop_flip"` (the usual one for
      CIFAR: pad by four, crop, mirror).

  Returns:
    A function `(key, images) -> images`.

  Raises:
    ConfigError: if the name is none of these.
  """
  if name not in AUGMENTATIONS:
    raise _errors.ConfigError(
      f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {name!r}"
    )
  return AUGMENTATIONS[name]
