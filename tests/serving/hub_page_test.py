"""Keeps what the published modules' page promises: runs its examples.

Only the module's address and the placeholders `...` are replaced.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.serving import exported

# From the page of google/supcon/resnet_v1_50/imagenet/classification/1 on
# TF-Hub, by the authors of https://arxiv.org/abs/2004.11362.
_PAGE = """
### Example use

This module implements the common signature for
[image classification](https://www.tensorflow.org/hub/common_signatures/images#classification).
It can be used with the hub.Module API like

```python

# TF1 version
import tensorflow.compat.v1 as tf
import tensorflow_hub as hub

module = hub.Module("https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1")
height, width = hub.get_expected_image_size(module)
images = ...  # A batch of images with shape [batch_size, height, width, 3].
logits = module(images)  # Logits with shape [batch_size, 1000].
...

# TF2 version
import tensorflow.compat.v2 as tf
import tensorflow_hub as hub

module = hub.KerasLayer("https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1")
height, width = hub.get_expected_image_size(module)
images = ...  # A batch of images with shape [batch_size, height, width, 3].
logits = module(images)  # Logits with shape [batch_size, 1000].
...
```

It's also possible to produce image embeddings using this model like:

```python

# TF1 version
import tensorflow.compat.v1 as tf
import tensorflow_hub as hub

module = hub.Module("https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1")
height, width = hub.get_expected_image_size(module)
images = ...  # A batch of images with shape [batch_size, height, width, 3].
logits = module(images, as_dict=True)['unnormalized_embeddings']  # Embeddings with shape [batch_size, 2048].
...

# TF2 version
import tensorflow.compat.v2 as tf
import tensorflow_hub as hub

module = hub.KerasLayer("https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1", output_key='unnormalized_embeddings')
images = ...  # A batch of images with shape [224, 224, width, 3].
logits = module(images) # Embeddings with shape [batch_size, 2048].
...
```

### Fine-tuning

Fine-tuning of this model is only possible in TF1. To construct the module such
that it is trainable and the batch norms are in train mode:

```python

# TF1 version
import tensorflow.compat.v1 as tf
import tensorflow_hub as hub

module = hub.Module("https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1" trainable=True, tags={'train'})
...
```

This will add the batch norm update ops to
`tf.get_collection(tf.GraphKeys.UPDATE_OPS)`. It will also make the sum of the
weight norms available in
`tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)`. Note that the weight
norms are not scaled by any weight decay coefficient. The weight norms are also
split into 3 separate sums:

1.  The encoder weights: the base ResNet up through the final pooling layer.
1.  The projection head weights: The additional MLP that projects the embeddings
    to the representation that is used in the Supervised Contrastive loss.
1.  The classification head weights: The fully connected layer mapping the
    embeddings to the logits.
"""  # noqa: E501

_ADDRESS = (
  '"https://tfhub.dev/google/supcon/resnet_v1_50/imagenet/classification/1"'
)
_SIZE_OF_KERAS_LAYER = 'height, width = hub.get_expected_image_size(module)\n'

# The page lacks the comma.
_PAGE_THAT_PARSES = _PAGE.replace(
  f'{_ADDRESS} trainable', f'{_ADDRESS}, trainable'
)


def _examples(version):
  """Returns the page's examples for 'TF1' or 'TF2'."""
  return [
    code
    for block in re.findall('```python\n(.*?)```', _PAGE_THAT_PARSES, re.DOTALL)
    for title, code in re.findall(
      '# (TF.) version\n(.*?)(?=# TF. version|$)', block, re.DOTALL
    )
    if title == version
  ]


def _run(code, path, images):
  """Runs an example; returns its variables."""
  code = code.replace(_ADDRESS, repr(path))
  code = code.replace('images = ...', 'images = given')
  assert 'https:' not in code
  variables = {'given': images}
  exec(code, variables)
  return variables


@pytest.fixture(name='images')
def _images():
  return exported.unit_range(exported.images())


def test_nothing_of_the_page_is_left_out():
  assert (len(_examples('TF1')), len(_examples('TF2'))) == (3, 2)
  assert _PAGE.count(_ADDRESS) == 5


@pytest.mark.hub_module
@pytest.mark.parametrize(
  'index, output', [(0, 'logits'), (1, 'unnormalized_embeddings')]
)
def test_use_in_tf1(export, expected, images, index, output):
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    found = _run(
      _examples('TF1')[index], export.hub_module, tf.constant(images)
    )
    assert (found['height'], found['width']) == (exported.SIDE, exported.SIDE)
    session.run(tf.compat.v1.global_variables_initializer())
    # The page calls the embeddings `logits` as well.
    logits = session.run(found['logits'])
  exported.assert_close({output: logits}, expected.outputs[False])


@pytest.mark.hub_module
def test_fine_tuning_in_tf1(export, expected, checkpoint, images):
  with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
    found = _run(_examples('TF1')[2], export.hub_module, None)
    logits = found['module'](tf.constant(images))
    keys = tf.compat.v1.GraphKeys
    assert graph.get_collection(keys.UPDATE_OPS)
    session.run(tf.compat.v1.global_variables_initializer())
    norms = session.run(graph.get_collection(keys.REGULARIZATION_LOSSES))
    np.testing.assert_allclose(
      norms, exported.norms(exported.values(checkpoint)), rtol=1e-5
    )
    # Batch norms are in train mode.
    exported.assert_close(
      {'logits': session.run(logits)}, expected.outputs[True]
    )


def test_logits_in_tf2(export, expected, images):
  (code, _) = _examples('TF2')
  # This has never worked: tensorflow_hub cannot tell the size for a KerasLayer,
  # of whatever module; newer versions do not try.
  assert _SIZE_OF_KERAS_LAYER in code
  with pytest.raises(
    AttributeError, match='get_attached_message|get_expected_image_size'
  ):
    _run(code, export.hub_module, images)
  # What the model cards give instead.
  instead = (
    "_, height, width, _ = module.resolved_object.signatures['default']"
    ".structured_input_signature[1]['images'].shape\n"
  )
  code = code.replace(_SIZE_OF_KERAS_LAYER, instead)
  for path in (export.hub_module, export.saved_model):
    found = _run(code, path, images)
    assert (found['height'], found['width']) == (exported.SIDE, exported.SIDE)
    exported.assert_close(
      {'logits': found['logits'].numpy()}, expected.outputs[False]
    )


def test_embeddings_in_tf2(export, expected, images):
  (_, code) = _examples('TF2')
  found = _run(code, export.hub_module, images)
  exported.assert_close(
    {'unnormalized_embeddings': found['logits'].numpy()},
    expected.outputs[False],
  )
