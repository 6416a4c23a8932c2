"""Random augmentations of a batch of images, computed inside the compiled step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparsejax.training import _errors

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
  """Pads each image by reflection and crops a random window of the original size.

  Args:
    key: a PRNG key.
    images: (n, height, width, channels) of any dtype.
    padding: pixels added on each side; a window's offset on each axis is uniform in
      0, ..., 2 padding.

  Returns:
    (n, height, width, channels), each image shifted by its own offset; the same dtype.
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
  """Rotates, scales, shears and shifts each image about its center at random.

  x' = R(t) [[1, h], [0, 1]] diag(s1, s2) x + d, by bilinear interpolation

  The output at x = (column, row) is the input at x', both relative to the center.
  Pixels outside the input are black. Each of t, h, s1, s2, d1 and d2 is uniform.

  Args:
    key: a PRNG key.
    images: (n, height, width, channels) of any dtype.
    degrees: t is in -degrees to degrees.
    scale: s1 and s2 are in 1 - scale to 1 + scale.
    shear: h is in -shear to shear.
    shift: d1 and d2 are in -shift to shift, in pixels.

  Returns:
    float32 (n, height, width, channels).
  """
  # The matrix [[a, b], [c, d]] and the shift of each image.
  n, height, width, channels = images.shape
  most = jnp.array([jnp.pi * degrees / 180, scale, scale, shear, shift, shift])
  drawn = jax.random.uniform(key, (n, 6), jnp.float32, -1.0, 1.0) * most[None]
  t, s1, s2, h, d1, d2 = (x[:, None, None] for x in drawn.T)
  cos, sin = jnp.cos(t), jnp.sin(t)
  a, b = cos * (1 + s1), (cos * h - sin) * (1 + s2)
  c, d = sin * (1 + s1), (sin * h + cos) * (1 + s2)
  # Where in the input each output pixel is sampled: (x, y), in input pixels.
  rows, columns = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2,
    jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2,
    indexing="ij",
  )
  rows, columns = rows[None], columns[None]
  x = a * columns + b * rows + d1 + (width - 1) / 2
  y = c * columns + d * rows + d2 + (height - 1) / 2
  # Coordinates outside are clipped to a black border of one pixel.
  sides = ((0, 0), (1, 1), (1, 1), (0, 0))
  padded = jnp.pad(images.astype(jnp.float32), sides).reshape(n, -1, channels)
  x, y = jnp.clip(x + 1, 0, width + 1), jnp.clip(y + 1, 0, height + 1)
  # The four neighbours of each coordinate, gathered from the flattened image, are mixed
  # with the coordinate's fractional parts.
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
  """Returns an augmentation by its name.

  Args:
    name: `"none"`, `"shift"` (by up to two pixels), `"affine"` or `"affine_strong"`
      (distortions for digits), or `"crop_flip"` (the usual one for CIFAR: pad by four,
      crop, mirror).

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
