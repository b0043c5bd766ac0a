"""The model card: describes a model, its training and its use."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import textwrap
from typing import Any

from supcon.config import enums
from supcon.config import hparams
from supcon.serving import saved_model
from supcon.serving import trained_models

# Packages for converting an export, see tests/serving/onnx_test.py.
ONNX_PACKAGES = (
  'tensorflow==2.15.1',
  'tf2onnx==1.17.0',
  'onnx==1.17.0',
  'onnxruntime==1.20.1',
)
PYTORCH_PACKAGES = ('torch==2.13.0', 'onnx2torch==1.5.15')

_MAX_CLASSES = 20
_MAX_LENGTH = 80

_ENCODERS = {
  enums.EncoderArchitecture.RESNET_V1: 'ResNet V1',
  enums.EncoderArchitecture.RESNEXT: 'ResNeXt',
  enums.EncoderArchitecture.TINY: 'an encoder of two convolutions',
}


@dataclasses.dataclass(frozen=True)
class Card:
  """The content of a model card.

  Attributes:
    model: The model.
    embedding_size: Length of an embedding.
    num_parameters: Number of trainable parameters.
    facts: The known facts of its training, see `exports.write`.
    version: The version of the code.
    commit: The commit of the code; None if it is not a git checkout.
  """

  model: trained_models.TrainedModel
  embedding_size: int
  num_parameters: int
  facts: Mapping[str, Any]
  version: str
  commit: str | None

  def text(
    self, saved_model_path: str | None, hub_module_path: str | None
  ) -> str:
    """Returns the card in Markdown.

    Its examples run unchanged in the directory of the card, which may have been
    moved or copied.

    Args:
      saved_model_path: The SavedModel, relative to that directory; None if
        there is none.
      hub_module_path: The TF-Hub module, relative to that directory; None if
        there is none.
    """
    parts = [self._overview(), self._input_and_output()]
    if saved_model_path:
      parts.append(self._saved_model(saved_model_path))
      parts.append(self._onnx(saved_model_path))
    if hub_module_path:
      parts.append(self._hub_module(hub_module_path, saved_model_path))
    parts += [
      self._training(),
      self._limitations(),
      self._classes(),
      self._hyper_parameters(),
      self._origin(),
    ]
    return '\n'.join(part.strip() + '\n' for part in parts)

  @property
  def _encoder(self):
    architecture = self.model.params.architecture
    kind = _ENCODERS[architecture.encoder_architecture]
    if architecture.encoder_architecture not in hparams.DEPTHS:
      return kind
    return f'{kind} {architecture.encoder_depth}'

  def _overview(self):
    architecture = self.model.params.architecture
    size = self.model.image_size
    max_pool = '' if architecture.use_initial_max_pool else 'no '
    sizes = ', '.join(map(str, architecture.projection_head_layers))
    return f"""
# {self._encoder}, Supervised Contrastive Learning

An image classifier and encoder, trained with Supervised Contrastive Learning
([Khosla et al., 2020](https://arxiv.org/abs/2004.11362)){self._trained_on()}.
The examples below run as they stand in the directory of this file.

| Part | |
|---|---|
| Encoder | {self._encoder}, width {architecture.encoder_width:g} |
| First convolution | kernel {architecture.first_conv_kernel_size}, \
stride {architecture.first_conv_stride}, {max_pool}max pooling |
| Images | {size}x{size} pixels, RGB |
| Embedding | {self.embedding_size} numbers |
| Projection head | layers of {sizes} numbers |
| Classifier | linear, {self.model.num_classes} classes |
| Trainable parameters | {self.num_parameters:,} |
"""

  def _trained_on(self):
    """Describes the training data in words, as far as it is known."""
    name, count = map(self.facts.get, ('data_name', 'num_train_examples'))
    images = f'{count:,} images' if count else 'images'
    if not name and not count:
      return ''
    return f' on\n{images}{f" of {_code(name)}" if name else ""}'

  def _input_and_output(self):
    size = self.model.image_size
    projection_size = self.model.params.architecture.projection_head_layers[-1]
    whitening = 'They are not whitened.'
    if self.model.mean is not None:
      whitening = (
        'They are whitened: on the scale [-1, 1] the mean is '
        f'{_numbers(self.model.mean)},\nthe standard deviation '
        f'{_numbers(self.model.std)}.'
      )
    return f"""
## What goes in, what comes out

In: `images`, float32 [N, {size}, {size}, 3], RGB in [0, 1]. What is done to
them before the encoder is inside.
{whitening}

Out, float32:

| Name | Shape | |
|---|---|---|
| `logits` | [N, {self.model.num_classes}] | of the classes, before softmax |
| `unnormalized_embeddings` | [N, {self.embedding_size}] \
| output of the encoder's last pooling: the feature vector |
| `normalized_embeddings`, `embeddings` | [N, {self.embedding_size}] \
| the same at unit length |
| `projection` | [N, {projection_size}] \
| what the contrastive loss compares, at unit length |
"""

  def _saved_model(self, path):
    size = self.model.image_size
    coefficient = saved_model.regularization_coefficient(self.model.params)
    return f"""
## SavedModel

TensorFlow 2:

```python
import tensorflow as tf

model = tf.saved_model.load({path!r})
images = tf.zeros([1, {size}, {size}, 3])  # RGB in [0, 1].
logits = model(images)
embeddings = model(images, output='unnormalized_embeddings')
```

In Keras 2. With TensorFlow 2.16 or newer, set `TF_USE_LEGACY_KERAS=1` in the
environment first: then `tf.keras` is the package `tf_keras`, which
tensorflow_hub needs there. (It also needs `setuptools<81`.)

```python
import tensorflow as tf
import tensorflow_hub as hub

encoder = hub.KerasLayer(
    {path!r},
    trainable=True,
    arguments={{'output': 'unnormalized_embeddings'}},
)
classifier = tf.keras.Sequential([encoder, tf.keras.layers.Dense(10)])
logits = classifier(tf.zeros([1, {size}, {size}, 3]))
```

Called with `training=True`, as Keras does in `fit`, batch norm uses the
statistics of the batch and moves the moving ones. `regularization_losses` are
three sums of v^2 / 2 over the weights of encoder, projection head and
classifier. Keras adds them to the loss, hence they are scaled: by
{coefficient:g}, the weight decay of the first stage of training.

A call returns one tensor, so `output_key` alone has nothing to choose from.
With `arguments={{'output': 'all'}}` it has all outputs; and with
`signature='default'` it works alike on this and on a TF-Hub module, frozen:

```python
import tensorflow as tf
import tensorflow_hub as hub

layer = hub.KerasLayer({path!r}, signature='default', output_key='projection')
projection = layer(tf.zeros([1, {size}, {size}, 3]))
```

`hub.get_expected_image_size(encoder)` fails in every version of tensorflow_hub:
up to 0.15 it takes no KerasLayer, and later ones lack it. This answers:

```python
import tensorflow_hub as hub

layer = hub.KerasLayer({path!r})
signature = layer.resolved_object.signatures['default']
_, height, width, _ = signature.structured_input_signature[1]['images'].shape
```

In Keras 3. It can be trained further, but batch norm keeps its statistics, and
there are no losses of regularization:

```python
import keras
import tensorflow as tf

model = keras.layers.TFSMLayer({path!r}, call_endpoint='default')
outputs = model(tf.zeros([1, {size}, {size}, 3]))  # RGB in [0, 1].
logits = outputs['logits']
embeddings = outputs['unnormalized_embeddings']
```

TensorFlow Serving, with encoded images (JPEG, PNG, BMP, GIF) of any size:

```sh
# Versions are numbers, as the name of this directory, below the base path.
tensorflow_model_server --rest_api_port=8501 --model_name=supcon \\
  --model_base_path="$(dirname "$PWD")" &
body='{{"signature_name": "{saved_model.BYTES_SIGNATURE}", \
"instances": [{{"b64": "%s"}}]}}'
printf "$body" "$(base64 -w0 photo.jpg)" |
  curl -d @- http://localhost:8501/v1/models/supcon:predict
```

| Signature | Input | Batch norm |
|---|---|---|
| `serving_bytes` | `image_bytes`, encoded images; the preprocessing of \
evaluation is inside | moving statistics |
| `default`, `image_classification`, `image_feature_vector` | `images`, in \
[0, 1] | moving statistics |
| `serving_default`, `contrastive_eval` | `input`, in [-1, 1], then whitened \
| moving statistics |
| `contrastive_train` | `input`, in [-1, 1], then whitened | statistics of the \
batch; moves none |
"""

  def _onnx(self, path):
    size = self.model.image_size
    return f"""
## ONNX and PyTorch

In an environment of its own. Tried with Python 3.11 and these versions, and
with TensorFlow 2.21.0, onnx 1.20.1, onnxruntime 1.23.2. Whoever names no
signature gets `serving_default`; `default` takes images in [0, 1]:

```sh
python3.11 -m venv onnx
onnx/bin/pip install {' '.join(ONNX_PACKAGES)}
onnx/bin/python -m tf2onnx.convert --saved-model {path} \\
  --signature_def default --output model.onnx
```

In ONNX Runtime:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession('model.onnx')
images = np.zeros([1, {size}, {size}, 3], np.float32)  # RGB in [0, 1].
(logits,) = session.run(['logits'], {{'images': images}})
```

In PyTorch, with `pip install {' '.join(PYTORCH_PACKAGES)}`:

```python
import onnx
import onnx2torch
import torch

names = [output.name for output in onnx.load('model.onnx').graph.output]
network = onnx2torch.convert('model.onnx').eval()
with torch.no_grad():
  outputs = network(torch.zeros(1, {size}, {size}, 3))  # RGB in [0, 1].
logits = outputs[names.index('logits')]
```
"""

  def _hub_module(self, path, saved_model_path):
    where = ''
    if saved_model_path:
      where = f"""
It is in `{path}`. Of the directory above, the SavedModel's, `hub.Module` says
that there is no tfhub_module.pb: with one `hub.load` and `hub.KerasLayer` would
not take it for a SavedModel any more.
"""
    return f"""
## TF-Hub module
{where}
The TF1 Hub format. In TensorFlow 1, or `tensorflow.compat.v1`, with
tensorflow_hub 0.15 or older, which have `hub.Module`. The newest TensorFlow for
them is 2.15, with Python 3.9 to 3.11:
`pip install tensorflow==2.15.1 tensorflow-hub==0.15.0 'setuptools<81'`.

```python
import tensorflow.compat.v1 as tf
import tensorflow_hub as hub

with tf.Graph().as_default():
  module = hub.Module({path!r})
  height, width = hub.get_expected_image_size(module)
  images = tf.zeros([1, height, width, 3])  # RGB in [0, 1].
  logits = module(images)
  embeddings = module(images, as_dict=True)['unnormalized_embeddings']
  with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    session.run([logits, embeddings])
```

To be fine-tuned:

```python
import tensorflow.compat.v1 as tf
import tensorflow_hub as hub

with tf.Graph().as_default():
  module = hub.Module({path!r}, trainable=True, tags={{'train'}})
  height, width = hub.get_expected_image_size(module)
  logits = module(tf.zeros([8, height, width, 3]))
  loss = tf.losses.sparse_softmax_cross_entropy([0] * 8, logits)
  # Of encoder, projection head, classifier; not scaled by any weight decay.
  norms = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
  loss += 1e-4 * tf.add_n(norms)
  with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train_op = tf.train.GradientDescentOptimizer(0.01).minimize(loss)
```

Frozen, in TensorFlow 2:

```python
import tensorflow_hub as hub

layer = hub.KerasLayer({path!r}, output_key='unnormalized_embeddings')
signature = layer.resolved_object.signatures['default']
_, height, width, _ = signature.structured_input_signature[1]['images'].shape
```

The last line stands for `hub.get_expected_image_size(layer)`, which fails in
every version of tensorflow_hub: up to 0.15 it takes no KerasLayer, and later
ones lack it.
"""

  def _training(self):
    facts = self.facts
    steps = str(self.model.step)
    if 'total_steps' in facts:
      steps += f' of {facts["total_steps"]}'
    rows = [
      (title, _code(facts[name]))
      for name, title in (
        ('data_name', 'Data'),
        ('dataset', 'Data set'),
        ('train_split', 'Training split'),
        ('num_train_examples', 'Training examples'),
        ('eval_dataset', 'Evaluation data set'),
        ('eval_split', 'Evaluation split'),
        ('num_eval_examples', 'Evaluation examples'),
      )
      if facts.get(name, '') != ''
      # Do not name the same data set twice.
      and (name != 'eval_dataset' or facts[name] != facts.get('dataset'))
    ]
    training = _table(('Training', ''), [*rows, ('Steps', steps)])
    metrics = facts.get('metrics')
    if not metrics:
      return f'## Training\n\n{training}\nNot evaluated.\n'
    on = ''
    if 'num_eval_examples' in facts:
      on = f' on {facts["num_eval_examples"]} examples'
    rows = [(_code(name), f'{value:.6g}') for name, value in metrics.items()]
    return f'## Training\n\n{training}\n' + _table((f'Metric{on}', ''), rows)

  def _limitations(self):
    classes, size = self.model.num_classes, self.model.image_size
    measured = 'Its accuracy was not measured.'
    if self.facts.get('metrics'):
      measured = (
        'The metrics above hold for images like those that they were measured '
        'on, as a whole: nothing was measured for parts of them.'
      )
    calibrated = (
      'Softmax of the logits has not been calibrated: do not take it for how '
      'likely an answer is right.'
    )
    if ece := self.facts.get('metrics', {}).get('calibration/ece'):
      calibrated = (
        'Softmax of the logits is not how likely an answer is right: where the '
        f'metrics were measured, the two differ by {ece:.3f} on average, and '
        'elsewhere by more.'
      )
    points = (
      f'It knows {classes} classes, and names one of them for any image: it '
      'cannot say that an image shows none.',
      'Of images that differ from those of its training (other cameras, '
      'styles, backgrounds), its classes and embeddings may mean nothing.',
      measured,
      calibrated,
      f'It sees {size}x{size} pixels; what is too small to be seen there is '
      'lost.',
      'Embeddings can be compared with those of the same checkpoint alone.',
      'It was not made, and nothing was tested, for decisions about people.',
    )
    lines = [
      textwrap.fill(point, 80, initial_indent='- ', subsequent_indent='  ')
      for point in points
    ]
    return '## What it is not good for\n\n' + '\n'.join(lines) + '\n'

  def _classes(self):
    names = self.model.class_names
    table = _table(
      ('Logit', 'Class'),
      [(str(n), _code(name)) for n, name in enumerate(names[:_MAX_CLASSES])],
    )
    rest = len(names) - _MAX_CLASSES
    more = f'\nAnd {rest} more: see labels.txt.\n' if rest > 0 else ''
    return f'## Classes\n\n{table}{more}'

  def _hyper_parameters(self):
    rows = []
    for field in hparams.FIELDS:
      value = self.model.params.get(field.path)
      is_changed = value != field.value
      rows.append(
        (
          _code(field.path),
          _code(_plain(value)),
          _code(_plain(field.value)),
          'changed' if is_changed else '',
        )
      )
    table = _table(('Hyper-parameter', 'Value', 'Default', ''), rows)
    return f'## Hyper-parameters\n\n{table}'

  def _origin(self):
    commit = f', commit {self.commit}' if self.commit else ''
    return f"""
## Code and licence

Written by version {self.version} of the code{commit}.

The code is under the Apache License 2.0. Whether the weights may be used as you
mean to depends also on the licence of the data, which is yours to check.

The method:

```bibtex
@inproceedings{{khosla2020supervised,
  title = {{Supervised Contrastive Learning}},
  author = {{Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron
    and Tian, Yonglong and Isola, Phillip and Maschinot, Aaron and Liu, Ce
    and Krishnan, Dilip}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  volume = {{33}},
  pages = {{18661--18673}},
  year = {{2020}}
}}
```
"""


def _numbers(values):
  return '(' + ', '.join(f'{value:g}' for value in values) + ')'


def _plain(value):
  """Returns a hyper-parameter in the form of flags."""
  if isinstance(value, tuple):
    return ','.join(map(str, value))
  return getattr(value, 'name', value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def _code(value):
  """Returns any value as code in a table cell: one short line."""
  text = ''.join(c if c.isprintable() else ' ' for c in str(value))
  text = ' '.join(text.split()).replace('`', "'")
  if len(text) > _MAX_LENGTH:
    text = text[: _MAX_LENGTH - 3] + '...'
  text = text.replace('|', '\\|')
  return f'`{text}`' if text else ''
