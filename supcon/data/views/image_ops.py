"""Image operations: pure functions of (image, strength) or (image, seed).

Between operations an image is uint8 [height, width, 3] in 0..255, as decoded.
That takes a quarter of the memory traffic of float32, and the published
pipeline rounds to grey levels at the same places. `to_model_range` converts an
image to the model's input.

A seed is an int32 or int64 tensor [2]. Equal seeds always give equal results; a
function that needs several draws splits its seed. Shapes and windows are int32:
a shape is [height, width], a window is [top, left, height, width], both in
pixels.
"""

import numpy as np
import tensorflow as tf

from supcon.data.views import image_files

tf1 = tf.compat.v1

# Sampling of crop windows (Inception), with the published limits: the aspect
# ratio is width / height, and a window below a tenth of the image is drawn
# again, even if the area range would allow it. After this many failed attempts
# the central square is taken.
_CROP_ASPECT_RANGE = (0.75, 1.33)
_CROP_MIN_COVERED = 0.1
_CROP_ATTEMPTS = 100

# SimCLR, https://arxiv.org/abs/2002.05709, appendix A: the range of the
# standard deviation of the blur in pixels.
_BLUR_SIGMA_RANGE = (0.1, 2.0)

# The random warp: control points per side, and the maximum move of a point in
# each direction as a fraction of the side. Neighbors keep their order.
_WARP_POINTS = 4
_WARP_RANGE = 0.05


# ----------------------------------------------------------------- windows


def whole_window(shape):
  """Returns the window that covers an image of `shape`."""
  return tf.concat([[0, 0], shape], axis=0)


def center_square_window(shape, fraction):
  """Returns the central square with `fraction` of the shorter side.

  Args:
    shape: int32 [2], height and width.
    fraction: Python float in (0, 1].

  Returns:
    int32 [4], a window of at least one pixel.
  """
  # Truncated in float32, as published. Other arithmetic would differ by a pixel
  # where the product is a whole number.
  shorter = tf.cast(tf.reduce_min(shape), tf.float32)
  side = tf.maximum(tf.cast(fraction * shorter, tf.int32), 1)
  return center_window(shape, [side, side])


def center_window(shape, size):
  """Returns the central window of `size`; an odd rest goes to top and left.

  Args:
    shape: int32 [2], height and width.
    size: int32 [2], height and width of the window, at most `shape`.

  Returns:
    int32 [4], the window.
  """
  return tf.concat([(shape - size + 1) // 2, size], axis=0)


def center_fraction_window(shape, fraction):
  """Returns a central window with `fraction` of each side.

  Args:
    shape: int32 [2], height and width.
    fraction: Python float in (0, 1].

  Returns:
    int32 [4], a window with equal margins on opposite sides.
  """
  sides = tf.cast(shape, tf.float64)
  margin = tf.cast((sides - fraction * sides) / 2, tf.int32)
  return tf.concat([margin, shape - 2 * margin], axis=0)


def random_crop_window(shape, area_range, seed):
  """Returns a random window of aspect ratio 0.75 to 1.33.

  Args:
    shape: int32 [2], height and width.
    area_range: Two Python floats in (0, 1], the smallest and largest fraction
      of the image's area.
    seed: int32 or int64 [2].

  Returns:
    int32 [4], the window. If none satisfies the constraints, it is the central
    square, as published: a whole panorama would be squashed beyond recognition.
  """
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
    image_size=tf.concat([shape, [3]], axis=0),
    bounding_boxes=tf.zeros([1, 0, 4]),
    seed=seed,
    min_object_covered=_CROP_MIN_COVERED,
    aspect_ratio_range=_CROP_ASPECT_RANGE,
    area_range=area_range,
    max_attempts=_CROP_ATTEMPTS,
    use_image_if_no_bounding_boxes=True,
  )
  # The op returns the whole image if it has found no window.
  is_whole = tf.reduce_all(tf.equal(size[:2], shape))
  square = center_square_window(shape, 1.0)
  return tf.where(is_whole, square, tf.concat([begin[:2], size[:2]], axis=0))


# ------------------------------------------------------ decoding and geometry


def decode_crops(encoded, choose_windows, decode_whole):
  """Decodes windows of an image.

  Args:
    encoded: A string scalar, the bytes of a JPEG, PNG, BMP or GIF (its first
      frame); or a decoded image, uint8 [height, width, 3].
    choose_windows: A function from the image's shape to a list of windows.
    decode_whole: Whether to decode a JPEG once as a whole and then cut it, or
      once per window with only the blocks that the window needs. Two windows of
      usual size are cheaper to cut from one decoded image; a single one is
      cheaper on its own. With subsampled chroma, the decoder smooths it over
      the window's neighborhood, so this choice changes the outermost pixels of
      a window by some grey levels.

  Returns:
    A list of uint8 [window height, window width, 3], one per window. Grey
    images have three equal channels; transparency is dropped.
  """

  if encoded.dtype != tf.string:
    return _cut(encoded, choose_windows)

  def as_stored():
    if decode_whole:
      return cut()
    return tf.cond(tf.io.is_jpeg(encoded), decode_windows, cut)

  def cut():
    return _cut(_decode_as_stored(encoded), choose_windows)

  def decode_windows():
    shape = tf.io.extract_jpeg_shape(encoded)[:2]
    return _decode_windows(encoded, choose_windows(shape))

  def as_turned():
    shape = tf.io.extract_jpeg_shape(encoded)[:2]
    shape = image_files.upright_shape(shape, turn)
    windows = [
      image_files.stored_window(window, shape, turn)
      for window in choose_windows(shape)
    ]
    if decode_whole:
      crops = _cut(_decode_as_stored(encoded), lambda _: windows)
    else:
      crops = _decode_windows(encoded, windows)
    return [image_files.turned(each, turn) for each in crops]

  turn = image_files.turn_of(encoded)
  # tf.cond unpacks a list of one element.
  return tf.nest.flatten(tf.cond(turn > 0, as_turned, as_stored))


def _cut(image, choose_windows):
  windows = choose_windows(tf.shape(image)[:2])
  return [crop(image, window) for window in windows]


def _decode_windows(encoded, windows):
  return [
    tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    for window in windows
  ]


def decode(encoded):
  """Decodes a whole image.

  Grey becomes three equal channels, a palette becomes its colors, CMYK becomes
  RGB, 16 bits become their upper 8, transparency is dropped, and only the first
  frame of an animation is used. For the palette of a BMP and for the rotation
  noted by a camera (EXIF) see `image_files.readable`.

  Args:
    encoded: A string scalar, the bytes of a JPEG, PNG, BMP or GIF.

  Returns:
    uint8 [height, width, 3]. Anything but a complete image of these kinds is an
    error when the graph runs.
  """
  image = _decode_as_stored(encoded)
  turn = image_files.turn_of(encoded)
  return tf.cond(
    turn > 0, lambda: image_files.turned(image, turn), lambda: image
  )


def _decode_as_stored(encoded):
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  image.set_shape([None, None, 3])
  return image


def crop(image, window):
  """Returns the part of `image` [height, width, 3] within `window`."""
  begin = tf.concat([window[:2], [0]], axis=0)
  size = tf.concat([window[2:], [3]], axis=0)
  cropped = tf.slice(image, begin, size)
  cropped.set_shape([None, None, 3])
  return cropped


def resize(image, size):
  """Resizes by bilinear interpolation.

  The published results used the sampling of TensorFlow 1: the top left corners
  of both grids coincide, shrinking does not smooth, and grey levels are
  truncated.

  Args:
    image: uint8 [height, width, 3].
    size: The new height and width, Python integers or int32 [2].

  Returns:
    uint8 [*size, 3].
  """
  return tf.cast(interpolate(image, size), tf.uint8)


def interpolate(image, size):
  """Like `resize` without truncation: float32 [*size, 3] in 0..255."""
  return tf1.image.resize(image, size)


def shape_with_shorter_side(shape, side):
  """Scales `shape` so that its shorter side becomes `side`.

  The product is truncated in float32, as published, so the shorter side may be
  `side - 1` (47 pixels to 32 give 31).

  Args:
    shape: int32 [2], height and width.
    side: Python integer.

  Returns:
    int32 [2], height and width.
  """
  shape = tf.cast(shape, tf.float32)
  return tf.cast(shape * (side / tf.reduce_min(shape)), tf.int32)


def flip(image):
  """Returns `image` mirrored left to right."""
  return tf.reverse(image, axis=[1])


# ---------------------------------------------------------------------- blur


def random_blur_sigma(draws, probability):
  """Draws the blur of a view without applying it.

  Args:
    draws: float32 [..., 2], uniform in [0, 1).
    probability: Float [...], probability of blurring the view.

  Returns:
    float32 [...]: the standard deviation in pixels, uniform in 0.1..2, or 0 for
    a view without blur.
  """
  low, high = _BLUR_SIGMA_RANGE
  sigmas = low + (high - low) * draws[..., 1]
  return tf.where(draws[..., 0] < probability, sigmas, 0.0)


def gaussian_blur(images, sigmas):
  """Blurs each image with its own separable Gaussian.

  The kernel extends side // 20 pixels to either side and sums to 1. Beyond the
  border images are 0, which is mid-grey or, after whitening, the mean color of
  the data set.

  Rows and columns are multiplied by banded matrices instead of convolved: a
  matrix product allows a different kernel for every image, on any platform,
  including XLA.

  Args:
    images: float [batch, side, side, channels], static except for the batch.
    sigmas: float32 [batch], the standard deviations in pixels; an image with 0
      is returned bit for bit.

  Returns:
    A tensor like `images`; computed in float32.

  Raises:
    ValueError: If the images are not square.
  """
  _, side, width, _ = images.shape.as_list()
  if side is None or side != width:
    raise ValueError(
      f'gaussian_blur found images of shape {images.shape}; expected '
      '[batch, side, side, channels] with a static side.'
    )
  radius = side // 20
  if not radius:
    return images
  sigmas = sigmas[:, tf.newaxis, tf.newaxis]
  is_blurred = sigmas > 0
  matrix = _blur_matrix(side, radius, tf.where(is_blurred, sigmas, 1.0))
  blurred = tf.cast(images, tf.float32)
  blurred = tf.einsum('bij,bjwc->biwc', matrix, blurred)
  blurred = tf.einsum('bij,bhjc->bhic', matrix, blurred)
  blurred = tf.cast(blurred, images.dtype)
  return tf.where(is_blurred[..., tf.newaxis], blurred, images)


def _blur_matrix(side, radius, sigmas):
  """Returns float32 [batch, side, side]: row i is the kernel at pixel i."""

  def density(distances):
    return tf.exp(-(distances**2) / (2 * sigmas**2))

  pixels = np.arange(side, dtype=np.float32)
  distances = pixels - pixels[:, np.newaxis]
  kernel = density(np.arange(-radius, radius + 1, dtype=np.float32))
  in_band = (np.abs(distances) <= radius).astype(np.float32)
  return in_band * density(distances) / tf.reduce_sum(kernel, -1, keepdims=True)


# ---------------------------------------------------------------------- warp


def random_warp(image, seed):
  """Applies a smooth random distortion with few control points.

  Args:
    image: uint8 [height, width, 3], static sides.
    seed: int32 or int64 [2].

  Returns:
    uint8 [height, width, 3].
  """
  sides = np.float32(image.shape.as_list()[:2])[:, np.newaxis, np.newaxis]
  draws = tf.random.stateless_uniform(
    [2, _WARP_POINTS, _WARP_POINTS], seed, -_WARP_RANGE, _WARP_RANGE
  )
  return warp(image, draws * sides)


def warp(image, displacements):
  """Takes each pixel from a place nearby, by bilinear interpolation.

  Args:
    image: uint8 [height, width, 3], static sides.
    displacements: float32 [2, points, points], the offsets in pixels, down and
      to the right, of the source of each control point. The points x points
      control points are evenly spread from border to border. Between them,
      displacements change smoothly.

  Returns:
    uint8 [height, width, 3]; beyond the border the border pixel is repeated.
  """
  height, width, _ = image.shape.as_list()
  _, num_down, num_across = displacements.shape.as_list()
  moves = tf.matmul(_point_weights(height, num_down), displacements)
  moves = tf.matmul(moves, _point_weights(width, num_across).T)

  def locate(positions, moves):
    """Returns indices before and after, and the weight of the latter."""
    last = len(positions.flat) - 1
    positions = tf.clip_by_value(positions + moves, 0.0, float(last))
    before = tf.floor(positions)
    # One value for each number of an image row instead of each pixel, because
    # broadcasting over three channels is slow.
    nearness = tf.repeat(positions - before, 3, axis=1)
    before = tf.cast(before, tf.int32)
    return before, tf.minimum(before + 1, last), nearness

  rows = np.arange(height, dtype=np.float32)[:, np.newaxis]
  columns = np.arange(width, dtype=np.float32)[np.newaxis]
  above, below, down = locate(rows, moves[0])
  left, right, across = locate(columns, moves[1])
  pixels = tf.reshape(image, [-1, 3])

  def levels(rows, columns):
    indices = (rows * width + columns)[..., tf.newaxis]
    found = tf.reshape(tf.gather_nd(pixels, indices), [height, width * 3])
    return tf.cast(found, tf.float32)

  def along_row(rows):
    start = levels(rows, left)
    return start + across * (levels(rows, right) - start)

  upper = along_row(above)
  warped = upper + down * (along_row(below) - upper)
  return tf.reshape(tf.cast(warped + 0.5, tf.uint8), image.shape)


def _point_weights(length, num_points):
  """Returns float32 [length, points], the weights of points per pixel."""
  spacing = max(length - 1, 1) / (num_points - 1)
  pixels = np.arange(length)[:, np.newaxis] / spacing
  nearness = np.maximum(1 - np.abs(pixels - np.arange(num_points)), 0)
  # Smoothstep: the weights of two neighbors sum to 1, without creases.
  return np.float32(nearness**2 * (3 - 2 * nearness))


# --------------------------------------------------------------- value ranges


def to_model_range(image, dtype, half_range=127.5):
  """Converts 0..255 to the model's range, [-1, 1].

  Args:
    image: uint8, any shape.
    dtype: A float type, in which to compute: 255 and 127.5 are exact in
      bfloat16.
    half_range: Always 127.5. XLA divides by it only if it does not know the
      value, that is, if it is a tensor from outside the compiled function.
      Otherwise XLA multiplies by the rounded inverse, and 255 becomes
      1.0000001.

  Returns:
    `dtype`, in the shape of `image`.
  """
  return tf.cast(image, dtype) / half_range - 1


def to_grey_levels(image):
  """Inverse of `to_model_range`: converts floats in [-1, 1] to uint8."""
  return tf.saturate_cast((image + 1) * 127.5, tf.uint8)


def whiten(image, mean, std):
  """Subtracts the data set's mean and divides by its standard deviation.

  Args:
    image: float [..., width, 3] in [-1, 1]; static width.
    mean: Three Python floats on the same scale.
    std: Three Python floats on the same scale.

  Returns:
    A tensor like `image`, computed in its type.
  """
  # One value for each number of an image row, because broadcasting over
  # channels alone is three times slower on CPU.
  row = image.shape[-2:].as_list()
  mean = tf.constant(np.broadcast_to(mean, row), image.dtype)
  std = tf.constant(np.broadcast_to(std, row), image.dtype)
  return (image - mean) / std
