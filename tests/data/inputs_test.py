"""Tests of order, randomness and batching of the inputs.

Most replace the augmentation by a stand-in that tells which image it was given
(a number made of its pixels) and with which seed, and so show what the input
pipeline itself does.
"""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from supcon.config import hparams
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.data.views import image_ops
from supcon.data.views import preprocessing
from tests.data import fakes

tf1 = tf.compat.v1


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  fakes.write_cifar10(path, num_train=23, num_test=13, image_size=8)
  fakes.write_imagenet(
    path, num_train=23, num_validation=5, num_classes=100, num_shards=3
  )
  return str(path)


@pytest.fixture(params=['from_memory', 'while_reading'])
def dataset(request, data_dir, monkeypatch):
  """23 training examples, through either way of shuffling."""
  dataset = datasets.load('cifar10', data_dir)
  if request.param == 'while_reading':
    monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
    # Windows of 8 of the 23 examples.
    window_bytes = 8.5 * dataset.num_bytes(is_train=True) / 23
    monkeypatch.setattr(inputs, 'WINDOW_BYTES', int(window_bytes))
  return dataset


def _number(image):
  """A number made of the pixels of an image, which may be encoded, or not."""
  if image.dtype == tf.string:
    image = image_ops.decode(image)
  pixels = tf.strings.as_string(tf.reshape(image, [-1]))
  # What float32 holds exactly.
  return tf.strings.to_hash_bucket_fast(
    tf.strings.reduce_join(pixels, separator=','), 2**24
  )


@pytest.fixture
def stand_in(monkeypatch):
  """Images are filled with their number, `blur_sigmas` hold the seed."""

  def views(encoded, seed, settings, flips, policy):
    del flips, policy
    assert seed.shape == [2] and seed.dtype == tf.int64
    shape = [settings.num_views, settings.image_size, settings.image_size, 3]
    return {
      'images': tf.fill(shape, tf.cast(_number(encoded), tf.float32)),
      'blur_sigmas': tf.cast(tf.math.floormod(seed, 2**24), tf.float32),
    }

  def finish(features, settings, mean, std, dtype):
    del settings, mean, std
    return {**features, 'images': tf.cast(features['images'], dtype)}

  monkeypatch.setattr(preprocessing, 'train_views', views)
  monkeypatch.setattr(preprocessing, 'eval_views', views)
  monkeypatch.setattr(preprocessing, 'finish_on_host', finish)


def _params(**preprocessing_fields):
  params = hparams.HParams(batch_size=4, seed=5).replace(
    'input_data.input_fn', 'cifar10'
  )
  fields = {'image_size': 4, **preprocessing_fields}
  for name, value in fields.items():
    params = params.replace(f'input_data.preprocessing.{name}', value)
  return params


def _fetch(
  input_fn, batch_size, num_batches=None, graph_seed=None, context=None
):
  """Returns the batches, as many as there are unless a number is given."""
  params = {'batch_size': batch_size}
  if context is not None:
    params['context'] = context
  with tf.Graph().as_default(), tf1.Session() as session:
    if graph_seed is not None:
      tf1.set_random_seed(graph_seed)
    iterator = tf1.data.make_initializable_iterator(input_fn(params))
    batch = iterator.get_next()
    session.run(iterator.initializer)
    batches = []
    while num_batches is None or len(batches) < num_batches:
      try:
        batches.append(session.run(batch))
      except tf.errors.OutOfRangeError:
        break
    return batches


def _train(dataset, params, num_batches, start_step=0, dtype=tf.float32, **kw):
  input_fn = inputs.train_input_fn(dataset, params, dtype, start_step)
  return _fetch(input_fn, params.batch_size, num_batches, **kw)


Examples = collections.namedtuple('Examples', 'numbers seeds labels')


def _examples(batches):
  """Returns which images, seeds and labels come one after the other."""
  return Examples(
    np.concatenate([f['images'][:, 0, 0, 0, 0] for f, _ in batches]),
    np.concatenate([f['blur_sigmas'] for f, _ in batches]),
    np.concatenate([labels for _, labels in batches]),
  )


def _assert_equal(found, expected):
  tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def _label_of_number(dataset, is_train=True):
  """Returns {number of an image: its label}, in the order of the records."""
  with tf.Graph().as_default(), tf1.Session() as session:
    records = dataset.records(is_train).map(
      lambda encoded, label: (_number(encoded), label)
    )
    records = tf1.data.make_one_shot_iterator(records.batch(10000))
    numbers, labels = session.run(records.get_next())
  assert len(set(numbers)) == len(numbers)
  return dict(zip(numbers, labels))


def test_every_epoch_is_a_permutation_and_nothing_is_dropped(dataset, stand_in):
  # 23 batches of 4 are exactly 4 epochs of 23; batch 5 holds the last three
  # examples of the first epoch and the first one of the second.
  found = _examples(_train(dataset, _params(), num_batches=23))
  label_of = _label_of_number(dataset)
  epochs = found.numbers.reshape([4, 23])
  for epoch in epochs:
    assert sorted(epoch) == sorted(label_of)
  for one in range(4):
    assert list(epochs[one]) != list(label_of)  # Shuffled ...
    for other in range(one):
      assert list(epochs[one]) != list(epochs[other])  # ... anew each time.
  assert [label_of[number] for number in found.numbers] == list(found.labels)


def test_seeds_differ_between_examples_and_epochs(dataset, stand_in):
  found = _examples(_train(dataset, _params(), num_batches=23))
  # 92 pairs of 24 random bits: equal ones would be no accident.
  assert len({tuple(seed) for seed in found.seeds}) == 92
  assert len(set(found.seeds.ravel())) > 180


@pytest.mark.parametrize('max_bytes_in_memory', [2**30, 0])
def test_limited_set_gives_only_its_examples(
  max_bytes_in_memory, data_dir, stand_in, monkeypatch
):
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', max_bytes_in_memory)
  dataset = datasets.load('cifar10', data_dir, max_train_examples=6)
  found = _examples(_train(dataset, _params(), num_batches=3))
  first_six = list(_label_of_number(datasets.load('cifar10', data_dir)))[:6]
  # 12 examples are two epochs.
  assert sorted(found.numbers) == sorted(first_six * 2)


def test_equal_seeds_give_equal_batches(dataset, stand_in):
  first = _train(dataset, _params(), num_batches=12)
  # The graph's own seed, which Estimators set, has no part in it.
  for graph_seed in (0, 1234):
    _assert_equal(
      _train(dataset, _params(), num_batches=12, graph_seed=graph_seed), first
    )


def test_seeds_matter(dataset, stand_in):
  one = _examples(_train(dataset, _params(), num_batches=6))
  other = _examples(
    _train(dataset, _params().replace('seed', 6), num_batches=6)
  )
  assert list(one.numbers) != list(other.numbers)
  assert not set(one.seeds.ravel()) & set(other.seeds.ravel())


@pytest.mark.parametrize('seed', [-(2**31), 2**31 - 1])
def test_any_seed_will_do(seed, data_dir, stand_in):
  dataset = datasets.load('cifar10', data_dir)
  found = _examples(_train(dataset, _params().replace('seed', seed), 3))
  assert len(set(found.numbers)) == 12


def test_restart_continues(dataset, stand_in):
  whole = _train(dataset, _params(), num_batches=25)
  # Within the first epoch, at its border with the second (23 = 5 x 4 + 3), in
  # the third, and where the fifth begins.
  for start_step in (1, 5, 13, 23):
    tail = _train(dataset, _params(), 25 - start_step, start_step=start_step)
    _assert_equal(tail, whole[start_step:])


def test_stream_goes_without_examples_that_are_left_out(
  data_dir, stand_in, monkeypatch
):
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
  # Two of three files, of 8, 7 and 8 examples, in part. Left out are the first
  # one, two across a border and the last ones.
  dataset = datasets.load('imagenet', data_dir, train_split='train[3:15]')
  numbers = list(_label_of_number(dataset))
  kept = [1, 2, 3, 6, 7, 8]
  dataset = dataclasses.replace(dataset, train=dataset.train.select(kept))
  assert list(_label_of_number(dataset)) == [numbers[i] for i in kept]
  whole = _train(dataset, _params(), num_batches=6)
  epochs = _examples(whole).numbers.reshape([4, 6])
  for epoch in epochs:
    assert sorted(epoch) == sorted(numbers[i] for i in kept)
  for start_step in (1, 2):
    tail = _train(dataset, _params(), 6 - start_step, start_step=start_step)
    _assert_equal(tail, whole[start_step:])


def test_files_are_looked_up_as_if_they_were_in_memory(
  tmp_path, stand_in, monkeypatch
):
  names = ('train/a/1', 'train/a/2', 'train/a/3', 'train/b/1', 'val/b/1')
  for level, name in enumerate(names):
    path = tmp_path / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full([2, 2, 3], level, np.uint8)
    path.write_bytes(tf.io.encode_png(image).numpy())
  dataset = datasets.load('folder', str(tmp_path))
  params = _params().replace('input_data.class_balanced', True)
  inputs.check(dataset, params)
  assert inputs.holding(dataset) == inputs.Holding.FILES
  in_memory = _train(dataset, params, num_batches=4)
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
  inputs.check(dataset, params)
  assert inputs.holding(dataset) == inputs.Holding.NAMES
  _assert_equal(_train(dataset, params, num_batches=4), in_memory)


class _Context(NamedTuple):
  """What TPUEstimator tells an input function of where it is called."""

  current_host: int
  num_hosts: int


def test_hosts_take_parts_of_each_batch(data_dir, stand_in):
  dataset = datasets.load('cifar10', data_dir)
  params = _params().replace('batch_size', 8)
  input_fn = inputs.train_input_fn(dataset, params, tf.float32, start_step=3)
  # Two hosts of two cores each: a call gives the batch of one core.
  hosts = [
    _fetch(input_fn, 2, num_batches=10, context=_Context(host, 2))
    for host in range(2)
  ]
  cores = []
  for step in range(0, 10, 2):
    for host in hosts:
      cores.extend(host[step : step + 2])
  _assert_equal(
    _examples(cores), _examples(_train(dataset, params, 5, start_step=3))
  )


def test_hosts_that_do_not_share(dataset, stand_in):
  params = _params().replace('batch_size', 8)
  params = params.replace('input_data.shard_per_host', False)
  input_fn = inputs.train_input_fn(dataset, params, tf.float32)
  label_of = _label_of_number(dataset)
  orders = []
  for host in range(2):
    # Each sees everything: 23 batches of 4 are 4 epochs.
    found = _examples(_fetch(input_fn, 4, 23, context=_Context(host, 2)))
    for epoch in found.numbers.reshape([4, 23]):
      assert sorted(epoch) == sorted(label_of)
      orders.append(tuple(epoch))
  assert len(set(orders)) == 8


def test_batch_that_cannot_be_split_among_the_hosts(data_dir):
  input_fn = inputs.train_input_fn(
    datasets.load('cifar10', data_dir), _params(), tf.float32
  )
  with pytest.raises(ValueError, match='--batch_size=4 .* 3 hosts; try 3'):
    input_fn({'batch_size': 1, 'context': _Context(0, 3)})


def test_balanced_classes_are_equally_frequent(data_dir, stand_in):
  dataset = datasets.load('cifar10', data_dir)
  # Six examples of three classes: 3, 2 and 1.
  label_of = _label_of_number(dataset)
  labels = list(label_of.values())
  positions = {
    label: [i for i, other in enumerate(labels) if other == label]
    for label in set(labels)
  }
  assert len(positions[0]) == 3
  kept = sorted(positions[0][:3] + positions[5][:2] + positions[7][:1])
  dataset = dataclasses.replace(dataset, train=dataset.train.select(kept))
  params = _params().replace('input_data.class_balanced', True)
  # 6 draws per epoch, 2 of each class. 9 batches are 6 epochs: 12 of each.
  whole = _train(dataset, params, num_batches=9)
  found = _examples(whole)
  for epoch in found.labels.reshape([6, 6]):
    assert sorted(epoch) == [0, 0, 5, 5, 7, 7]
  assert [label_of[number] for number in found.numbers] == list(found.labels)
  # Each example of a class as often as the other ones: 12 / 3, 12 / 2, 12 / 1.
  counts = collections.Counter(found.numbers)
  assert sorted(counts.values()) == [4, 4, 4, 6, 6, 12]
  # Nor are its views the same when an example comes again, be it within an
  # epoch.
  assert len({tuple(seed) for seed in found.seeds}) == 36
  for start_step in (1, 4):
    tail = _train(dataset, params, 9 - start_step, start_step=start_step)
    _assert_equal(tail, whole[start_step:])


def test_classes_of_large_record_files_cannot_be_balanced(
  data_dir, monkeypatch
):
  params = _params().replace('input_data.class_balanced', True)
  dataset = datasets.load('imagenet', data_dir)
  inputs.check(dataset, params)
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
  with pytest.raises(ValueError, match='--class_balanced=True .*--num_images'):
    inputs.check(dataset, params)


def test_evaluation_set_can_be_limited(data_dir, stand_in):
  label_of = _label_of_number(
    datasets.load('cifar10', data_dir), is_train=False
  )
  dataset = datasets.load('cifar10', data_dir, max_eval_examples=5)
  assert dataset.num_eval_examples == 5 and dataset.num_train_examples == 23
  input_fn = inputs.eval_input_fn(dataset, _params(), tf.float32)
  found = _examples(_fetch(input_fn, batch_size=5))
  assert list(found.numbers) == list(label_of)[:5]


def test_batch_size_is_that_of_the_call(dataset, stand_in):
  fours = _examples(_train(dataset, _params(), num_batches=6))
  sixes = _examples(
    _train(dataset, _params().replace('batch_size', 6), num_batches=4)
  )
  _assert_equal(sixes, fours)


def test_label_noise_stays_with_the_example(dataset, stand_in):
  label_of = _label_of_number(dataset)
  params = _params().replace('input_data.label_noise_prob', 0.5)
  found = _examples(_train(dataset, params, num_batches=23))
  noisy_of = dict(zip(found.numbers, found.labels))
  assert noisy_of != label_of
  # The same in all four epochs.
  assert [noisy_of[number] for number in found.numbers] == list(found.labels)
  # It changes nothing else, and is not in the evaluation.
  clean = _examples(_train(dataset, _params(), num_batches=23))
  _assert_equal(found._replace(labels=clean.labels), clean)
  batches = _fetch(inputs.eval_input_fn(dataset, params, tf.float32), 13)
  evaluated = _examples(batches)
  assert list(evaluated.labels) == list(
    _label_of_number(dataset, is_train=False).values()
  )


def test_rate_of_label_noise(tmp_path, stand_in):
  dataset = datasets.load('digits', str(tmp_path))
  params = _params().replace('batch_size', 479)  # 3 x 479 = 1,437.
  clean = _examples(_train(dataset, params, num_batches=3))
  params = params.replace('input_data.label_noise_prob', 0.3)
  noisy = _examples(_train(dataset, params, num_batches=3))
  np.testing.assert_array_equal(noisy.numbers, clean.numbers)
  # One in ten random classes is the right one: 0.3 x 9/10 = 0.27.
  changed = noisy.labels != clean.labels
  standard_error = np.sqrt(0.27 * 0.73 / 1437)
  assert abs(changed.mean() - 0.27) < 4 * standard_error
  # Each of the ten classes is equally likely, right labels aside.
  counts = np.bincount(noisy.labels[changed], minlength=10)
  expected = changed.sum() / 10
  assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))
  other = _examples(_train(dataset, params.replace('seed', 6), num_batches=3))
  # Other seeds, other noise: its rate is independent of what was changed.
  order = np.argsort(clean.numbers)
  other_order = np.argsort(other.numbers)
  other_changed = other.labels[other_order] != clean.labels[order]
  both = (other_changed & changed[order]).mean()
  assert abs(both - 0.27**2) < 4 * np.sqrt(0.27**2 / 1437)


def test_all_labels_can_be_noise(data_dir, stand_in):
  dataset = datasets.load('cifar10', data_dir)
  params = _params().replace('input_data.label_noise_prob', 1.0)
  found = _examples(_train(dataset, params, num_batches=23))
  assert found.labels.min() >= 0 and found.labels.max() <= 9
  assert len(set(found.labels)) > 1


# 13 examples in batches that leave a remainder, that fit, and in one that is
# larger than the set.
@pytest.mark.parametrize(
  'batch_size, num_batches', [(4, 4), (6, 3), (1, 13), (13, 1), (20, 1)]
)
def test_evaluation_counts_every_example_once(
  batch_size, num_batches, data_dir, stand_in
):
  dataset = datasets.load('cifar10', data_dir)
  batches = _fetch(
    inputs.eval_input_fn(dataset, _params(), tf.float32), batch_size
  )
  assert len(batches) == num_batches
  found = _examples(batches)
  weights = np.concatenate([features['weights'] for features, _ in batches])
  label_of = _label_of_number(dataset, is_train=False)
  num_filling = num_batches * batch_size - 13
  np.testing.assert_array_equal(weights, [1] * 13 + [0] * num_filling)
  assert list(found.numbers) == list(label_of) + [0] * num_filling
  assert list(found.labels) == list(label_of.values()) + [0] * num_filling
  assert not found.seeds[13:].any()


def test_evaluation_shares_no_seed_with_training(data_dir, stand_in):
  dataset = datasets.load('cifar10', data_dir)
  input_fn = inputs.eval_input_fn(dataset, _params(), tf.float32)
  evaluated = _examples(_fetch(input_fn, 13))
  _assert_equal(_examples(_fetch(input_fn, 13)), evaluated)
  trained = _examples(_train(dataset, _params(), num_batches=23))
  assert len(set(evaluated.seeds.ravel())) == 26
  assert not set(evaluated.seeds.ravel()) & set(trained.seeds.ravel())


@pytest.mark.parametrize(
  'name, num_views, dtype, max_bytes_in_memory, is_deferred',
  [
    ('cifar10', 1, tf.float32, 2**30, False),
    ('cifar10', 3, tf.bfloat16, 2**30, False),
    ('imagenet', 2, tf.float32, 0, True),
  ],
)
def test_shapes_are_static(
  name,
  num_views,
  dtype,
  max_bytes_in_memory,
  is_deferred,
  data_dir,
  monkeypatch,
):
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', max_bytes_in_memory)
  dataset = datasets.load(name, data_dir)
  params = _params(
    image_size=8,
    num_views=num_views,
    augmentation_type=enums.AugmentationType.SIMCLR,
    defer_augmentation=is_deferred,
  )
  images_dtype = tf.uint8 if is_deferred else dtype
  features = {
    'images': tf.TensorSpec([5, num_views, 8, 8, 3], images_dtype),
    'blur_sigmas': tf.TensorSpec([5, num_views], tf.float32),
  }
  if is_deferred:
    features.update(
      jitter_values=tf.TensorSpec([5, num_views, 4], tf.float32),
      jitter_order=tf.TensorSpec([5, num_views, 4], tf.int32),
      is_gray=tf.TensorSpec([5, num_views], tf.bool),
    )
  with tf.Graph().as_default() as graph:
    train, evaluation = (
      make(dataset, params, dtype)({'batch_size': 5}).element_spec
      for make in (inputs.train_input_fn, inputs.eval_input_fn)
    )
    assert train == (features, tf.TensorSpec([5], tf.int32))
    assert evaluation == (
      {**train[0], 'weights': tf.TensorSpec([5], tf.float32)},
      train[1],
    )
    # Nothing calls back into Python.
    graph_def = graph.as_graph_def()
    ops = {node.op for node in graph_def.node}
    for function in graph_def.library.function:
      ops.update(node.op for node in function.node_def)
    assert 'ParallelMapDatasetV2' in ops
    assert not {op for op in ops if 'PyFunc' in op}


@pytest.mark.parametrize(
  'name, is_deferred',
  [('cifar10', False), ('cifar10', True), ('imagenet', False)],
)
def test_augmented_batches_are_reproducible(name, is_deferred, data_dir):
  dataset = datasets.load(name, data_dir)
  params = _params(
    image_size=16,
    augmentation_type=enums.AugmentationType.SIMCLR,
    defer_augmentation=is_deferred,
  )
  whole = _train(dataset, params, num_batches=8)
  # Another graph, from step 2 on.
  _assert_equal(_train(dataset, params, 6, start_step=2), whole[2:])
  images = np.concatenate([features['images'] for features, _ in whole])
  assert np.isfinite(images).all()
  # Two views of an image differ, and so do two epochs of it.
  first, second = images[:, 0], images[:, 1]
  assert len(np.unique(first.reshape([32, -1]), axis=0)) == 32
  assert np.all(np.any(first != second, axis=(1, 2, 3)))

  input_fn = inputs.eval_input_fn(dataset, params, tf.float32)
  evaluation = _fetch(input_fn, batch_size=4)
  # 13 or 5 examples leave one in the last batch of 4; black images of no weight
  # fill it up.
  for name, values in evaluation[-1][0].items():
    filling = values[1:]
    color = filling[0, 0, 0, 0] if name == 'images' else 0
    assert (filling == color).all(), name


@pytest.mark.parametrize(
  'batch_size, group_size',
  # The largest divisor up to 16.
  [(1, 1), (7, 7), (16, 16), (17, 1), (24, 12), (32, 16), (34, 2)],
)
def test_groups_do_not_show(batch_size, group_size):
  sizes = []

  def finish(features, labels):
    sizes.append(labels.shape.as_list())
    return {**features, 'twice': 2 * features['x']}, labels

  def example(index):
    return {'x': tf.fill([2, 3], index)}, index

  examples = tf.data.Dataset.range(100).map(example)
  found = inputs.in_batches(examples, batch_size, finish)
  plain = inputs.in_batches(examples, batch_size, None)
  assert set(map(tuple, sizes)) == {(group_size,)}
  assert found.element_spec[0]['twice'].shape == [batch_size, 2, 3]
  features, labels = plain.element_spec
  assert found.element_spec == (
    {**features, 'twice': features['x']},
    labels,
  )
  found, plain = list(found), list(plain)
  # What does not fill a batch is dropped.
  assert len(found) == len(plain) == 100 // batch_size
  for (features, labels), (plain_features, plain_labels) in zip(found, plain):
    twice = features.pop('twice')
    _assert_equal((features, labels), (plain_features, plain_labels))
    np.testing.assert_array_equal(twice, 2 * features['x'])
  np.testing.assert_array_equal(
    np.concatenate([labels for _, labels in found]),
    np.arange(100 // batch_size * batch_size),
  )


def test_groups_of_elements_that_are_no_pairs():
  examples = tf.data.Dataset.range(8).map(lambda index: {'x': index})
  batches = inputs.in_batches(examples, 4, lambda batch: {'y': -batch['x']})
  found = [batch['y'].numpy().tolist() for batch in batches]
  assert found == [[0, -1, -2, -3], [-4, -5, -6, -7]]


def test_how_training_images_are_held_changes_nothing(
  data_dir, stand_in, monkeypatch
):
  views = preprocessing.train_views
  seen = []

  def recording_views(image, *rest):
    seen.append((image.dtype, image.shape))
    return views(image, *rest)

  monkeypatch.setattr(preprocessing, 'train_views', recording_views)
  encoded = (tf.string, [])
  dataset = datasets.load('cifar10', data_dir)
  assert inputs.holding(dataset) == inputs.Holding.PIXELS
  held = _train(dataset, _params(), num_batches=6)
  assert seen.pop() == (tf.uint8, [8, 8, 3])
  for shape in (None, (2000, 2000)):  # 23 * 3 * 2000^2 bytes are 263 MiB.
    other = dataclasses.replace(dataset, image_shape=shape)
    assert inputs.holding(other) == inputs.Holding.FILES
    _assert_equal(_train(other, _params(), num_batches=6), held)
    assert seen.pop() == encoded
  # Where not even the files fit, they are read in another order.
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
  assert inputs.holding(dataset) == inputs.Holding.NOTHING
  _train(dataset, _params(), num_batches=1)
  assert seen.pop() == encoded


def test_batch_larger_than_the_training_set(data_dir):
  dataset = datasets.load('cifar10', data_dir, max_train_examples=20)
  params = _params().replace('input_data.max_samples', 20)
  inputs.check(dataset, params.replace('batch_size', 20))
  with pytest.raises(ValueError) as error:
    inputs.check(dataset, params.replace('batch_size', 21))
  assert str(error.value) == (
    '--batch_size=21 is larger than the 20 training examples of '
    '--input_fn=cifar10 (--num_images=20); give at most 20.'
  )
