"""Pictures in event files, for TensorBoard."""

from collections.abc import Mapping
import os
import struct
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from supcon.reports import pipeline_probes

tf1 = tf.compat.v1


class Picture(NamedTuple):
  """A picture.

  Attributes:
    png: The picture as a PNG file.
    description: What it shows.
  """

  png: bytes
  description: str


def write(
  directory: str, kind: str, pictures: Mapping[str, Picture], step: int
) -> None:
  """Writes an event file of pictures.

  Args:
    directory: The directory of event files.
    kind: Ends the name of the file. Earlier files of the kind are replaced.
    pictures: The pictures by tag.
    step: The step that they belong to.

  Raises:
    tf.errors.OpError: If a file cannot be written or removed.
  """
  suffix = f'.{kind}'
  tf.io.gfile.makedirs(directory)
  for name in tf.io.gfile.listdir(directory):
    if name.startswith('events.') and name.endswith(suffix):
      tf.io.gfile.remove(os.path.join(directory, name))
  with (
    tf.Graph().as_default(),
    tf1.summary.FileWriter(directory, filename_suffix=suffix) as writer,
  ):
    for tag, (content, description) in pictures.items():
      summary = tf1.Summary()
      value = summary.value.add(tag=tag)
      value.metadata.summary_description = description
      # The older kind of image loses its description.
      value.metadata.plugin_data.plugin_name = 'images'
      # The size is at the beginning of a PNG.
      width, height = struct.unpack('>II', content[16:24])
      parts = [b'%d' % width, b'%d' % height, content]
      value.tensor.CopyFrom(tf.make_tensor_proto(parts))
      writer.add_summary(summary, global_step=step)


def png(image: np.ndarray) -> bytes:
  """Returns an image, uint8 [height, width, 3], as a PNG file."""
  with tf.Graph().as_default(), pipeline_probes.session() as session:
    pixels = tf1.placeholder(tf.uint8, image.shape)
    return session.run(tf.io.encode_png(pixels), {pixels: image})
