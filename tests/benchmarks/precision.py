"""Times a training step in bfloat16 against float32, and against PyTorch.

  python -m tests.benchmarks.precision

ResNet-50 with the CIFAR stem, 32 samples in two views of 32x32: forward,
contrastive loss, backward, momentum, moving statistics. The baseline is float32
here; PyTorch runs the same step (channels_last) in float32 and in bfloat16 by
autocast, and is skipped if it is not installed. All steps live in one process
and take turns, so that a busy machine slows all of them; the ratios are medians
over the turns. Also prints the cosine between the gradients of all weights in
bfloat16 and float32 at the first step; 0.999 is wanted. Images are digits, four
pixels wide each: those of noise are so alike after averaging that 0.995 is all.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from supcon import losses  # noqa: E402
from supcon.config import hparams  # noqa: E402
from supcon.data.sources import digits  # noqa: E402
from supcon.models import contrastive  # noqa: E402
from supcon.models import layers  # noqa: E402

try:
  import torch
except ImportError:
  torch = None

tf1 = tf.compat.v1

_SIZE, _VIEWS, _CLASSES, _TEMPERATURE = 32, 2, 10, 0.1
_RATE, _MOMENTUM = 0.01, 0.9


def _batch(batch):
  """Returns float32 [B, V, S, S, 3] and int32 [B]."""
  images, labels = (each[:batch] for each in digits.arrays())
  images = images.reshape([-1, 8, 8]).astype(np.float32) / 8 - 1
  images = np.kron(images, np.ones([1, _SIZE // 8, _SIZE // 8], np.float32))
  views = [images, np.roll(images, (2, -1), axis=(1, 2))]
  images = np.stack(views, axis=1)[..., np.newaxis].repeat(3, axis=-1)
  return images, labels.astype(np.int32)


class Here:
  """The step of this project, in a graph and a session of its own."""

  def __init__(self, dtype, batch):
    images, labels = _batch(batch)
    with tf.Graph().as_default() as graph:
      tf1.set_random_seed(0)
      model = contrastive.ContrastiveModel(
        hparams.Architecture(
          first_conv_kernel_size=3,
          first_conv_stride=1,
          use_initial_max_pool=False,
        ),
        _CLASSES,
      )
      # Variables hold the batch: constants would be folded into the graph.
      images = tf1.get_variable('images', initializer=images, trainable=False)
      outputs = model(tf.cast(images.read_value(), dtype), training=True)
      loss = tf.reduce_mean(
        losses.contrastive_loss(outputs.projection, labels, _TEMPERATURE)
      )
      optimizer = tf1.train.MomentumOptimizer(_RATE, _MOMENTUM)
      gradients = [
        (gradient, variable)
        for gradient, variable in optimizer.compute_gradients(loss)
        if gradient is not None
      ]
      self._gradient = tf.concat(
        [tf.reshape(gradient, [-1]) for gradient, _ in gradients], axis=0
      )
      with tf.control_dependencies(
        layers.move_averages(outputs.batch_statistics)
      ):
        train = optimizer.apply_gradients(gradients)
      with tf.control_dependencies([train]):
        self._loss = tf.identity(loss)
      self._session = tf1.Session(graph=graph)
      self._session.run(tf1.global_variables_initializer())

  def gradient(self):
    """Returns the gradient of all weights, float32 [n]."""
    return self._session.run(self._gradient)

  def __call__(self):
    return self._session.run(self._loss)


def _torch_resnet_50():
  """Returns ResNet-50 with the CIFAR stem and a projection head."""
  nn = torch.nn

  def conv(inputs, outputs, size, stride=1):
    return nn.Sequential(
      nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
      nn.BatchNorm2d(outputs),
    )

  class Block(nn.Module):
    def __init__(self, inputs, channels, stride):
      super().__init__()
      outputs = 4 * channels
      self.body = nn.Sequential(
        conv(inputs, channels, 1),
        nn.ReLU(inplace=True),
        conv(channels, channels, 3, stride),
        nn.ReLU(inplace=True),
        conv(channels, outputs, 1),
      )
      project = inputs != outputs or stride > 1
      self.shortcut = (
        conv(inputs, outputs, 1, stride) if project else nn.Identity()
      )

    def forward(self, x):
      return torch.relu(self.body(x) + self.shortcut(x))

  blocks, inputs = [], 64
  for channels, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
    for index in range(count):
      stride = 2 if channels > 64 and not index else 1
      blocks.append(Block(inputs, channels, stride))
      inputs = 4 * channels
  return nn.Sequential(
    conv(3, 64, 3),
    nn.ReLU(inplace=True),
    *blocks,
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(inputs, 2048),
    nn.ReLU(inplace=True),
    nn.Linear(2048, 128, bias=False),
  )


class Torch:
  """The same step in PyTorch."""

  def __init__(self, is_bfloat16, batch):
    torch.manual_seed(0)
    images, labels = _batch(batch)
    images = images.swapaxes(0, 1).reshape([-1, _SIZE, _SIZE, 3])
    layout = torch.channels_last
    self._images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    self._images = self._images.to(memory_format=layout)
    labels = torch.from_numpy(np.tile(labels, _VIEWS))
    self._is_other = ~torch.eye(len(labels), dtype=torch.bool)
    self._is_positive = (labels[:, None] == labels[None]) & self._is_other
    self._model = _torch_resnet_50().to(memory_format=layout).train()
    self._optimizer = torch.optim.SGD(
      self._model.parameters(), _RATE, _MOMENTUM
    )
    self._is_bfloat16 = is_bfloat16

  def __call__(self):
    with torch.autocast('cpu', torch.bfloat16, enabled=self._is_bfloat16):
      features = self._model(self._images)
    features = torch.nn.functional.normalize(features.float(), dim=1)
    logits = features @ features.T / _TEMPERATURE
    logits = logits.masked_fill(~self._is_other, -1e9)
    ratios = torch.log_softmax(logits, dim=1)
    counts = self._is_positive.sum(1)
    loss = -(ratios * self._is_positive).sum(1) / counts
    loss = _TEMPERATURE * loss.mean()
    self._optimizer.zero_grad(set_to_none=True)
    loss.backward()
    self._optimizer.step()
    return loss.item()


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=7)
  args = parser.parse_args()

  steps = {
    'float32': Here(tf.float32, args.batch),
    'bfloat16': Here(tf.bfloat16, args.batch),
  }
  full, half = (step.gradient() for step in steps.values())
  cosine = full @ half / (np.linalg.norm(full) * np.linalg.norm(half))
  print(f'cosine of the gradients: {cosine:.5f}')
  if torch:
    steps['PyTorch float32'] = Torch(False, args.batch)
    steps['PyTorch bfloat16'] = Torch(True, args.batch)
  else:
    print('SKIPPED: PyTorch, which is not installed')

  seconds = {name: [] for name in steps}
  for repeat in range(args.repeats + 1):
    for name, step in steps.items():
      start = time.perf_counter()
      loss = step()
      duration = time.perf_counter() - start
      print(f'  {name:16} loss {loss:.5f}  {duration:.2f} s', flush=True)
      if repeat:  # The first step compiles and allocates.
        seconds[name].append(duration)
  for name, times in seconds.items():
    rate = args.batch / np.median(times)
    ratio = np.median(np.divide(seconds['float32'], times))
    print(f'{name:16} {rate:6.2f} images/s, {ratio:5.2f} times float32')


if __name__ == '__main__':
  main()
