"""Embeddings for TensorBoard's Embedding Projector, with classes and pictures.

The projector has three habits that shape the files:

- It offers every matrix of a run's newest checkpoint, and a run without a
  checkpoint gets that of the directory above. So the embeddings are a
  checkpoint themselves, which keeps the weights of the model out, and is read
  from all storage.
- It opens with the run that started first, and the weights of the model are
  listed for `train` and `eval`. So the first event of this run is of time 0.
- It finds its configuration in directories of event files only.
"""

import math
import os

import numpy as np
import tensorflow as tf

from supcon.config import safe_text
from supcon.evaluation import model_outputs
from supcon.reports import image_summaries
from supcon.reports import pipeline_probes
from supcon.runs import checkpoint_files

tf1 = tf.compat.v1

# With 5,000 embeddings of 2,048 numbers, a browser loads 39 MiB.
MAX_POINTS = 5000
# Height and width of a picture in pixels. The projector takes at most 8,192 for
# all of them together.
SIDE = 32

_CONFIG = 'projector_config.pbtxt'
_METADATA = 'metadata.tsv'
_SPRITES = 'sprites.png'
_TENSOR = 'embeddings'
# TensorBoard reads event files in the order of their names.
_FIRST_EVENTS = 'events.out.tfevents.0000000000.projector'

# Of Okabe and Ito, and two more, for frames of the pictures.
COLORS = np.array(
  [
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
    (106, 61, 154),
    (127, 127, 127),
    (160, 82, 45),
  ],
  np.uint8,
)
_FRAME = 3


def write(
  directory: str,
  outputs: model_outputs.Outputs,
  positions: np.ndarray,
  thumbnails: np.ndarray,
  step: int,
  has_predictions: bool = True,
) -> None:
  """Writes what the projector shows if it finds the directory below --logdir.

  Args:
    directory: A directory for the event files of one run of TensorBoard's;
      earlier embeddings in it are replaced.
    outputs: The outputs for N examples.
    positions: The examples that become points, [n], increasing.
    thumbnails: uint8 [n, SIDE, SIDE, 3], their images.
    step: The step of the model's checkpoint.
    has_predictions: Whether the logits mean anything.

  Raises:
    ValueError: If an embedding is NaN or infinite.
    tf.errors.OpError: If a file cannot be written.
  """
  tf.io.gfile.makedirs(directory)

  def write_file(name, content):
    with tf.io.gfile.GFile(os.path.join(directory, name), 'wb') as file:
      file.write(content)

  name = f'{_TENSOR}-{step}'
  path = os.path.join(directory, name)
  _write_checkpoint(path, _embeddings(outputs, positions))
  sheet = _side_by_side(_framed(thumbnails, outputs, positions))
  write_file(_SPRITES, image_summaries.png(sheet))
  write_file(_METADATA, _metadata(outputs, positions, has_predictions).encode())
  write_file(_CONFIG, _CONFIG_TEXT.encode())
  state = checkpoint_files.state_text(directory, [path])
  write_file(checkpoint_files.STATE, state.encode())
  with tf.io.TFRecordWriter(os.path.join(directory, _FIRST_EVENTS)) as events:
    events.write(tf1.Event(file_version='brain.Event:2').SerializeToString())
  for other in tf.io.gfile.listdir(directory):
    if other.startswith(f'{_TENSOR}-') and not other.startswith(f'{name}.'):
      tf.io.gfile.remove(os.path.join(directory, other))


_CONFIG_TEXT = f"""embeddings {{
  tensor_name: "{_TENSOR}"
  metadata_path: "{_METADATA}"
  sprite {{
    image_path: "{_SPRITES}"
    single_image_dim: {SIDE}
    single_image_dim: {SIDE}
  }}
}}
"""


def _embeddings(outputs, positions):
  """Returns the embeddings at positions, which increase, at unit length."""
  parts = []
  for block, rows in outputs.blocks('embeddings'):
    start, stop = np.searchsorted(positions, [block.start, block.stop])
    chosen = positions[start:stop] - block.start
    parts.append(model_outputs.unit(rows[chosen]))
  return np.concatenate(parts)


def _write_checkpoint(path, embeddings):
  with tf.Graph().as_default(), pipeline_probes.session() as session:
    values = tf1.placeholder(tf.float32, embeddings.shape)
    save = tf.raw_ops.SaveV2(
      prefix=path,
      tensor_names=[_TENSOR],
      shape_and_slices=[''],
      tensors=[values],
    )
    session.run(save, {values: embeddings})


def _framed(thumbnails, outputs, positions):
  """Returns images in frames whose colors tell a few classes apart."""
  if outputs.num_classes > len(COLORS):
    return thumbnails
  framed = np.empty_like(thumbnails)
  framed[:] = COLORS[outputs.labels[positions], np.newaxis, np.newaxis]
  inside = slice(_FRAME, -_FRAME)
  framed[:, inside, inside] = thumbnails[:, inside, inside]
  return framed


def _side_by_side(images):
  """Returns square images in rows of a square, [side, side, 3]."""
  columns = math.ceil(math.sqrt(len(images)))
  side = images.shape[1]
  grid = np.zeros([columns**2, side, side, 3], np.uint8)
  grid[: len(images)] = images
  grid = grid.reshape([columns, columns, side, side, 3])
  return grid.swapaxes(1, 2).reshape([columns * side, columns * side, 3])


def _metadata(outputs, positions, has_predictions):
  """Returns a line per example as TSV; its first column is its label."""
  columns = {
    'class': [_class_name(outputs, n) for n in outputs.labels[positions]]
  }
  if has_predictions:
    predicted = outputs.logits[positions].argmax(axis=1)
    is_right = predicted == outputs.labels[positions]
    columns['predicted'] = [_class_name(outputs, label) for label in predicted]
    columns['result'] = np.where(is_right, 'right', 'wrong')
  columns['example'] = [outputs.name_of(n) for n in positions]
  return ''.join(
    '\t'.join(map(safe_text.printable, row)) + '\n'
    for row in [columns, *zip(*columns.values())]
  )


def _class_name(outputs, label):
  name = outputs.class_of(label)
  # The projector prefers the first column that is no number as the label.
  return f'class {name}' if name.isdecimal() else name
