"""The TF-Hub module, in the TF1 Hub format, for hub.Module of TensorFlow 1.

It keeps what https://tfhub.dev/google/supcon/resnet_v1_50 promises: see `write`
for tags, signatures and collections.
"""

import functools

import tensorflow as tf
import tensorflow_hub as hub

from supcon.serving import trained
from supcon.training import stages

tf1 = tf.compat.v1

_TRAIN_TAG = 'train'


def write(model: trained.TrainedModel, path: str) -> None:
  """Writes a module.

  Its signatures are trained.IMAGE_SIGNATURES; images are RGB in [0, 1], and
  `hub.get_expected_image_size` knows their size. Opened without tags, batch
  norm uses the moving statistics. With tags={'train'} it uses those of the
  batch, and each call adds to UPDATE_OPS what moves the moving ones.

  Opened with trainable=True, REGULARIZATION_LOSSES holds three sums of the
  weight norms: of the encoder up to the final pooling, of the projection head,
  of the classifier. No weight decay scales them; biases are among the weights
  if the model was trained with --include_bias_in_weight_decay.

  Args:
    model: What is exported.
    path: The directory to write.
  """
  spec = hub.create_module_spec(
    functools.partial(_build, model),
    tags_and_args=[
      (set(), {'training': False}),
      ({_TRAIN_TAG}, {'training': True}),
    ],
  )
  # Nothing is computed that would be worth an accelerator, which may be busy.
  config = tf1.ConfigProto(device_count={'GPU': 0})
  with tf.Graph().as_default(), tf1.Session(config=config) as session:
    module = hub.Module(spec)
    tf1.train.init_from_checkpoint(model.checkpoint, module.variable_map)
    session.run(tf1.global_variables_initializer())
    module.export(path, session)


def _build(model, training):
  """Builds one of the graphs."""
  size = model.image_size
  network = model.build()
  images = tf1.placeholder(tf.float32, [None, size, size, 3], trained.IMAGES)
  outputs = trained.outputs(network, model.from_unit_range(images), training)
  norms = stages.weight_norms(
    network, model.params.loss.include_bias_in_weight_decay
  )
  for norm in norms.values():
    tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, norm)
  for update in network.batch_norm_updates():
    tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, update.op)
  for name, keys in trained.IMAGE_SIGNATURES.items():
    hub.add_signature(
      name,
      inputs={trained.IMAGES: images},
      outputs={output: outputs[key] for output, key in keys.items()},
    )
  info = hub.ImageModuleInfo()
  info.default_image_size.height = size
  info.default_image_size.width = size
  hub.attach_image_module_info(info)
