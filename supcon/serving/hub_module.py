"""Writes a TF-Hub module in the TF1 Hub format, for TensorFlow 1.

It has the interface of https://tfhub.dev/google/supcon/resnet_v1_50: see
`write` for tags, signatures and collections.

It is written with TensorFlow alone: tensorflow_hub 0.15 is the last version
that could write it, and needs TensorFlow 2.15 or older. A module is a directory
with

  saved_model.pb: a SavedModel with one MetaGraphDef per set of tags. They do
    not name the location of the variables: readers look in the module.
  variables/: a checkpoint of the variables, under their names in the graphs.
  tfhub_module.pb: a ModuleDef, which tells tensorflow_hub the format.
"""

import os

import tensorflow as tf

from supcon.models import layers
from supcon.serving import trained_models

tf1 = tf.compat.v1

# The sets of tags, and whether batch norm trains in their graphs.
_GRAPHS = (((), False), (('train',), True))

_COLLECTIONS = (
  tf1.GraphKeys.GLOBAL_VARIABLES,
  tf1.GraphKeys.TRAINABLE_VARIABLES,
  tf1.GraphKeys.UPDATE_OPS,
  tf1.GraphKeys.REGULARIZATION_LOSSES,
)
# Collection of attachments of a graph, which only tensorflow_hub reads.
_ATTACHMENTS = 'hub_module_attachments'

_MODULE_DEF = 'tfhub_module.pb'
_FORMAT_V3 = 3  # The only ModuleDef.Format that tensorflow_hub knows.


def write(model: trained_models.TrainedModel, path: str) -> None:
  """Writes a module.

  Its signatures are trained_models.IMAGE_SIGNATURES. Images are RGB in [0, 1],
  and `hub.get_expected_image_size` returns their size. Without tags, batch norm
  uses the moving statistics. With tags={'train'} it uses those of the batch,
  and each call adds the updates of the moving statistics to UPDATE_OPS.

  With trainable=True, REGULARIZATION_LOSSES holds three weight norms: of the
  encoder up to the final pooling, of the projection head, and of the
  classifier. They are not scaled by a weight decay. They include biases if the
  model was trained with --use_bias_weight_decay.

  Args:
    model: The model to export.
    path: The directory to write.
  """
  graphs = []
  for tags, training in _GRAPHS:
    with tf.Graph().as_default():
      network = model.build()
      graphs.append(_meta_graph(model, network, tags, training))
  _write_variables(
    network.variables,
    model.checkpoint,
    os.path.join(path, tf.saved_model.VARIABLES_DIRECTORY),
  )
  _write_file(
    os.path.join(path, tf.saved_model.SAVED_MODEL_FILENAME_PB),
    _saved_model(graphs),
  )
  _write_file(os.path.join(path, _MODULE_DEF), _module_def())


def write_signpost(path: str, where: str) -> None:
  """Makes hub.Module(path) fail with an error that says where to look.

  tensorflow_hub rejects a module that requires an unknown feature, and quotes
  that feature. The directory must not hold anything else to load: with such a
  file, hub.load and hub.KerasLayer do not accept a SavedModel.

  Args:
    path: The directory that is not a module.
    where: The directory of the module, relative to `path`.
  """
  text = f'this directory is no module: its TF-Hub module is in {where}/'
  _write_file(os.path.join(path, _MODULE_DEF), _module_def(text))


def _meta_graph(model, network, tags, training):
  """Adds to a network's graph, the current one; returns a MetaGraphDef."""
  size = model.image_size
  images = tf1.placeholder(
    tf.float32, [None, size, size, 3], trained_models.IMAGES
  )
  raw = network(model.from_unit_range(images), training)
  outputs = trained_models.named(raw)
  norms = network.weight_norms(model.params.loss.include_bias_in_weight_decay)
  for norm in norms.values():
    tf1.add_to_collection(tf1.GraphKeys.REGULARIZATION_LOSSES, norm)
  for update in layers.move_averages(raw.batch_statistics):
    tf1.add_to_collection(tf1.GraphKeys.UPDATE_OPS, update.op)
  # Without attributes that have default values, because another version of
  # TensorFlow may not know them.
  graph = tf1.train.export_meta_graph(
    collection_list=_COLLECTIONS, clear_devices=True, strip_default_attrs=True
  )
  graph.meta_info_def.tags.extend(tags)
  for name, keys in trained_models.IMAGE_SIGNATURES.items():
    signature = graph.signature_def[name]
    _set_info(signature.inputs[trained_models.IMAGES], images)
    for output, key in keys.items():
      _set_info(signature.outputs[output], outputs[key])
  graph.collection_def[_ATTACHMENTS].bytes_list.value.append(
    _image_module_info(size)
  )
  return graph


def _set_info(info, tensor):
  """Makes a TensorInfo describe a tensor."""
  info.name = tensor.name
  info.dtype = tensor.dtype.as_datatype_enum
  info.tensor_shape.CopyFrom(tensor.shape.as_proto())


def _write_variables(variables, checkpoint, directory):
  """Copies variables from a checkpoint."""
  tf.io.gfile.makedirs(directory)
  names = [variable.op.name for variable in variables]
  slices = [''] * len(names)
  # On CPU: the work is not worth an accelerator, which may be busy.
  config = tf1.ConfigProto(device_count={'GPU': 0})
  with tf.Graph().as_default(), tf1.Session(config=config) as session:
    values = tf.raw_ops.RestoreV2(
      prefix=checkpoint,
      tensor_names=names,
      shape_and_slices=slices,
      dtypes=[variable.dtype.base_dtype for variable in variables],
    )
    session.run(
      tf.raw_ops.SaveV2(
        prefix=os.path.join(directory, tf.saved_model.VARIABLES_FILENAME),
        tensor_names=names,
        shape_and_slices=slices,
        tensors=values,
      )
    )


def _write_file(path, content):
  with tf.io.gfile.GFile(path, 'wb') as file:
    file.write(content)


# -------------------------------------------------------------- messages
#
# Around the graphs there are seven fields, each an integer or bytes. They are
# written out as protobuf encodes them,
# https://protobuf.dev/programming-guides/encoding. The class of a SavedModel is
# private to TensorFlow; classes for the others would have to be declared here
# field by field, by calls that differ from one version of protobuf to another.


def _saved_model(graphs):
  """Returns a SavedModel.

  message SavedModel { repeated MetaGraphDef meta_graphs = 2; }
  """
  # Maps in a fixed order, so that the same model gives the same file.
  return b''.join(
    _embedded(2, graph.SerializeToString(deterministic=True))
    for graph in graphs
  )


def _module_def(*required_features):
  """Returns a ModuleDef.

  message ModuleDef {
    Format format = 1;
    repeated string required_features = 2;
  }
  """
  return _integer(1, _FORMAT_V3) + b''.join(
    _embedded(2, feature.encode()) for feature in required_features
  )


def _image_module_info(size):
  """Returns a ModuleAttachment with an ImageModuleInfo.

  message ModuleAttachment { string key = 1; bytes value = 2; }
  message ImageModuleInfo { InputSize default_image_size = 1; }
  message InputSize { int32 height = 1; int32 width = 2; }
  """
  input_size = _integer(1, size) + _integer(2, size)
  return _embedded(1, b'image_module_info') + _embedded(
    2, _embedded(1, input_size)
  )


def _integer(field, value):
  """Returns a field that holds an integer, at least 0."""
  return _varint(field << 3) + _varint(value)


def _embedded(field, value):
  """Returns a field that holds bytes, a string or another message."""
  return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value):
  """Encodes 7 bits per byte, lowest first; the top bit means more follow."""
  high, low = divmod(value, 128)
  return bytes([low | 128]) + _varint(high) if high else bytes([low])
