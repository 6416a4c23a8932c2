"""Data sets, in memory or streamed, and augmentations."""

from sparsejax.training.data._augment import get as get_augmentation
from sparsejax.training.data._load import (
  CENTERINGS,
  NAMES,
  NOT_IN_MEMORY,
  Dataset,
  Split,
  centered,
  load,
  pad,
  statistics,
  take,
  unit,
)
from sparsejax.training.data._stream import Stream
from sparsejax.training.data._tfds_source import find as find_prepared
from sparsejax.training.data._tfds_source import root as data_root

__all__ = [
  "Dataset",
  "Split",
  "load",
]
