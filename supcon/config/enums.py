"""All enums of the hyper-parameters.

The members' values are the abbreviations that the compact `--hparams` string
uses; they are part of the public contract and never change.
"""

import enum


class AugmentationType(enum.Enum):
  """The family of random image augmentations of the training views."""

  SIMCLR = 's'
  AUTOAUGMENT = 'a'
  RANDAUGMENT = 'r'
  STACKED_RANDAUGMENT = 'sr'
  IDENTITY = 'i'


class LossContrastMode(enum.Enum):
  """Which views serve as anchors: every view, or the first one only."""

  ALL_VIEWS = 'a'
  ONE_VIEW = 'o'


class LossSummationLocation(enum.Enum):
  """Where positives are summed: outside (eq. 2) or inside (eq. 3) the log."""

  OUTSIDE = 'o'
  INSIDE = 'i'


class LossDenominatorMode(enum.Enum):
  """Which positives are in the denominator besides the negatives."""

  ALL = 'a'
  ONE_POSITIVE = 'o'
  ONLY_NEGATIVES = 'n'


class Optimizer(enum.Enum):
  """The update rule of a stage."""

  RMSPROP = 'r'
  MOMENTUM = 'm'
  LARS = 'l'
  ADAM = 'a'
  NESTEROV = 'n'


class EncoderArchitecture(enum.Enum):
  """The family of encoder networks."""

  RESNET_V1 = 'r1'
  RESNEXT = 'rx'
  TINY = 't'  # Not published: two convolutions, to try things out.


class DecayType(enum.Enum):
  """How the learning rate decays after its warm-up."""

  COSINE = 'c'
  EXPONENTIAL = 'e'
  PIECEWISE_LINEAR = 'p'
  NO_DECAY = 'n'


class EvalCropMethod(enum.Enum):
  """How an evaluation image is brought to the input size."""

  RESIZE_THEN_CROP = 'rc'
  CROP_THEN_RESIZE = 'cr'
  CROP_THEN_DISTORT = 'cd'
  IDENTITY = 'i'
