"""Tests of contact_sheet: which examples, how seen, how shown."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from supcon.config import enums
from supcon.data import inputs
from supcon.data.sources import datasets
from supcon.data.sources import folder
from supcon.data.sources import splits
from supcon.reports import contact_sheet
from supcon.reports import lettering
from tests.data import fakes
from tests.data import pictures

tf1 = tf.compat.v1

_PAPER = 228


@pytest.fixture(name='data_dirs', scope='module')
def fixture_data_dirs(tmp_path_factory):
  """The same images in folders and as records; the class is number % 3."""
  as_files = tmp_path_factory.mktemp('files')
  pictures.write_colored(as_files)

  def examples():
    for number in range(pictures.NUM_COLORED):
      yield (
        number,
        {'image': pictures.colored_image(number), 'label': number % 3},
      )

  as_records = tmp_path_factory.mktemp('records')
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='png'),
      'label': tfds.features.ClassLabel(names=pictures.CLASSES),
    }
  )
  splits_ = {'train': examples(), 'test': examples()}
  fakes.write('plain', '1.0.0', features, splits_, as_records, num_shards=4)
  return {'folder': as_files, 'tfds:plain': as_records}


_SOURCES = [
  ('folder', 'held'),
  ('folder', 'while reading'),
  ('tfds:plain', 'held'),
  ('tfds:plain', 'while reading'),
]


@pytest.fixture(name='dataset', params=_SOURCES, ids=' '.join)
def fixture_dataset(request, data_dirs, monkeypatch):
  name, how = request.param
  dataset = datasets.load(name, str(data_dirs[name]))
  if how == 'while reading':
    monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
    # Windows of 7 of the 30 examples.
    window = 7.5 * dataset.train.num_bytes / pictures.NUM_COLORED
    monkeypatch.setattr(inputs, 'WINDOW_BYTES', int(window))
  return dataset


@pytest.fixture(name='folders')
def fixture_folders(data_dirs):
  return datasets.load('folder', str(data_dirs['folder']))


def _elements(dataset, count):
  with tf.Graph().as_default(), tf1.Session() as session:
    iterator = tf1.data.make_initializable_iterator(dataset())
    element = iterator.get_next()
    session.run(iterator.initializer)
    return [session.run(element) for _ in range(count)]


def _batch(dataset, params):
  """What the run's first step sees."""
  input_fn = inputs.train_input_fn(dataset, params, tf.float32)
  (batch,) = _elements(
    lambda: input_fn({'batch_size': params.batch_size}), count=1
  )
  return batch


# ------------------------------------------------------------ which examples


def _check_rows(dataset, params):
  """Compares a sheet with the first step of the run, and with the records."""
  sheet = contact_sheet.make(dataset, params, num_examples=8)
  features, labels = _batch(dataset, params)
  # Images have one color, so any pixel will do.
  colors = np.rint((features['images'][:, 0, 5, 5] + 1) * 127.5)
  records = _elements(
    lambda: dataset.train.records().map(
      lambda image, label: (tf.io.decode_png(image), label)
    ),
    pictures.NUM_COLORED,
  )
  assert len(sheet.rows) == 8
  for row, color, label in zip(sheet.rows, colors, labels):
    image, stored_label = records[row.position]
    np.testing.assert_array_equal(image[0, 0], color)
    assert row.size == image.shape[:2]
    assert row.class_name == pictures.CLASSES[label]
    assert row.stored_class_name == pictures.CLASSES[stored_label]
    assert row.where == dataset.train.where(row.position)
    np.testing.assert_array_equal(row.original[48, 48], color)
    assert row.views.shape == (4, 16, 16, 3)
    assert (row.views == color).all()
  return sheet.rows


def test_rows_are_the_examples_that_the_run_sees_first(dataset):
  rows = _check_rows(dataset, pictures.params({'label_noise_prob': 0.7}))
  assert len({row.position for row in rows}) == 8
  assert any(row.class_name != row.stored_class_name for row in rows)


def test_rows_are_balanced_where_the_run_is(folders):
  # 10 of the 11 examples are of one class.
  train = folders.train
  apes = np.flatnonzero(train.labels == 0)
  others = np.flatnonzero(train.labels == 1)[:1]
  few = train.select(sorted(np.concatenate([apes, others])))
  dataset = dataclasses.replace(folders, train=few)
  params = pictures.params({'class_balanced': True})
  rows = contact_sheet.make(dataset, params, num_examples=8).rows
  _, labels = _batch(dataset, params)
  assert [row.class_name for row in rows] == [
    pictures.CLASSES[i] for i in labels
  ]
  # The only bee comes again and again: for every second of 11 draws.
  bees = [row for row in rows if row.class_name == 'bee']
  assert len(bees) >= 2
  for row in rows:
    assert f'/{row.class_name}/' in row.where


def test_there_are_no_more_rows_than_examples_and_no_fewer_views(data_dirs):
  dataset = datasets.load(
    'folder', str(data_dirs['folder']), max_train_examples=3
  )
  params = dataclasses.replace(pictures.params(num_views=5), batch_size=2)
  sheet = contact_sheet.make(dataset, params)
  assert sorted(row.position for row in sheet.rows) == [0, 1, 2]
  assert all(row.views.shape == (5, 16, 16, 3) for row in sheet.rows)


def test_too_many_examples_to_tell_apart_are_refused(folders):
  # Three bytes count to 16,777,215.
  many = SimpleNamespace(num_examples=2**24 + 1)
  dataset = dataclasses.replace(folders, train=many)
  with pytest.raises(ValueError, match='--num_images=16777216 or fewer'):
    contact_sheet.make(dataset, pictures.params())


def test_positions_beyond_a_byte_are_told_apart(folders, monkeypatch):
  # Files 0 to 29 stand at positions 1,000,000 and so on.
  storage = folder.FolderSplit.storage

  def padded(split):
    files = storage(split)
    padding = 1_000_000

    def names():
      return tuple(
        tf.concat([tf.repeat(column[:1], padding), column], axis=0)
        for column in files.names()
      )

    return splits.Files(names, files.read)

  monkeypatch.setattr(folder.FolderSplit, 'storage', padded)
  monkeypatch.setattr(
    folder.FolderSplit, 'num_examples', property(lambda _: 1_000_030)
  )
  monkeypatch.setattr(
    folder.FolderSplit, 'where', lambda split, position: str(position)
  )
  monkeypatch.setattr(inputs, 'MAX_BYTES_IN_MEMORY', 0)
  sheet = contact_sheet.make(folders, pictures.params(), num_examples=4)
  positions = [row.position for row in sheet.rows]
  # Of a million, hardly any four are all below 65,536.
  assert max(positions) > 2**16 and max(positions) < 1_000_030
  assert [row.where for row in sheet.rows] == list(map(str, positions))


# ------------------------------------------------------------------ its views


@pytest.fixture(name='photos')
def fixture_photos(tmp_path):
  pictures.write_photos(tmp_path)
  return datasets.load('folder', str(tmp_path))


def test_views_are_those_of_the_first_step(photos):
  dataset = pictures.with_whitening(photos)
  params = pictures.params(
    image_size=32,
    augmentation_type=enums.AugmentationType.SIMCLR,
    blur_probability=0.0,
  )
  sheet = contact_sheet.make(dataset, params, num_examples=8)
  features, _ = _batch(dataset, params)
  images = features['images'] * dataset.info.std + dataset.info.mean
  expected = np.rint((images + 1) * 127.5)
  assert sheet.num_views == 2
  for row, views in zip(sheet.rows, expected, strict=True):
    assert len(row.views) == 4
    np.testing.assert_allclose(row.views[:2], views, atol=1)
    # Others are others.
    for other in row.views[2:]:
      assert np.abs(views - other).mean(axis=(1, 2, 3)).min() > 1


@pytest.mark.parametrize(
  'where', [{'defer_blurring': False}, {'defer_augmentation': True}], ids=str
)
def test_what_is_left_to_the_model_is_shown(photos, where):
  def views(**fields):
    params = pictures.params(
      image_size=48,
      augmentation_type=enums.AugmentationType.SIMCLR,
      blur_probability=1.0,
      **fields,
    )
    sheet = contact_sheet.make(
      pictures.with_whitening(photos), params, num_examples=2
    )
    return np.float32([row.views for row in sheet.rows])

  np.testing.assert_allclose(
    views(defer_blurring=True), views(**where), atol=1.01
  )


# -------------------------------------------------------------- whole images


def _original(tmp_path, image):
  """The whole image as a sheet of views of 16 pixels shows it."""
  for path in ('train/ape', 'train/bee', 'val/ape'):
    (tmp_path / path).mkdir(parents=True)
    Image.fromarray(np.uint8(image)).save(tmp_path / path / '1.png')
  dataset = datasets.load('folder', str(tmp_path))
  params = dataclasses.replace(pictures.params(), batch_size=2)
  row = contact_sheet.make(dataset, params, num_examples=1).rows[0]
  assert row.size == image.shape[:2]
  # Views of 16 pixels are enlarged 6 times, to 96.
  assert row.original.shape == (96, 96, 3)
  return row.original


def test_a_wide_image_has_paper_above_and_below(tmp_path):
  # 40 pixels become 96, so 20 become 48, and 24 are left on either side.
  original = _original(tmp_path, np.full([20, 40, 3], (9, 99, 199)))
  assert (original[:24] == _PAPER).all() and (original[72:] == _PAPER).all()
  assert (original[24:72] == (9, 99, 199)).all()


def test_a_large_high_image_has_paper_left_and_right(tmp_path):
  # 300 pixels become 96, so 100 become 32.
  original = _original(tmp_path, np.full([300, 100, 3], (9, 99, 199)))
  assert (original[:, :32] == _PAPER).all()
  assert (original[:, 64:] == _PAPER).all()
  assert (original[:, 32:64] == (9, 99, 199)).all()


def test_the_pixels_of_a_small_image_are_seen(tmp_path):
  image = np.uint8([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]])
  np.testing.assert_array_equal(
    _original(tmp_path, image), image.repeat(48, axis=0).repeat(48, axis=1)
  )


def test_the_stripes_of_a_large_image_become_grey(tmp_path):
  # Picking pixels would show black or white stripes.
  stripes = np.zeros([384, 384, 3])
  stripes[::2] = 254
  original = _original(tmp_path, stripes)
  assert np.abs(original[8:-8].astype(int) - 127).max() <= 2


def test_a_line_of_an_image_is_a_line(tmp_path):
  original = _original(tmp_path, np.full([1, 500, 3], 7))
  assert [tuple(row) for row in np.argwhere((original == 7).all(axis=(1, 2)))]


# ------------------------------------------------------------------ the sheet


def _hand_made_sheet(num_rows):
  random = np.random.RandomState(0)

  def row(number):
    return contact_sheet.Row(
      position=100 + number,
      class_name='cow',
      stored_class_name='bee',
      size=(20, 30),
      where=f'/data/cow/{number}.png',
      original=random.randint(0, 200, [96, 96, 3]).astype(np.uint8),
      views=random.randint(0, 200, [4, 16, 16, 3]).astype(np.uint8),
    )

  rows = tuple(map(row, range(num_rows)))
  return contact_sheet.ContactSheet(rows, num_views=2, zoom=6)


def test_layout_of_a_row():
  sheet = _hand_made_sheet(num_rows=2)
  _, strip = sheet.strips()
  row = sheet.rows[1]
  # Half a gap of 6 above and below; left a digit of 3 x 4 pixels in a margin
  # of 12 on each side and the name of the class, the longer line of two, with a
  # margin of 12; right a margin of 24.
  assert strip.shape[0] == 3 + 96 + 3
  left = 12 + 12 + 12
  name = lettering.line('(was bee)', 160)
  height, width = name.shape
  words = strip[3 + 48 : 3 + 48 + height, left : left + width, 0]
  assert words.min() < 128 and words.max() == _PAPER
  np.testing.assert_array_equal(words < 128, name > 100 / 148)  # 228 - 148 = 80
  left += width + 12
  tiles = [row.original] + [
    view.repeat(6, axis=0).repeat(6, axis=1) for view in row.views
  ]
  for tile, gap_after in zip(tiles, (24, 6, 24, 6, 24)):
    np.testing.assert_array_equal(strip[3:99, left : left + 96], tile)
    left += 96
    assert (strip[:, left : left + gap_after] == _PAPER).all()
    left += gap_after
  assert strip.shape[1] == left


def test_rows_are_numbered():
  _, strip = _hand_made_sheet(num_rows=2).strips()
  # 5 x 4 pixels high, in the middle of 96: 38 above and below.
  digit = strip[3 + 38 : 3 + 58 : 4, 12:24:4, 0]
  expected = ['.#.', '##.', '.#.', '.#.', '###']
  assert [
    ''.join('.' if level == _PAPER else '#' for level in line) for line in digit
  ] == expected


def test_all_rows_are_equally_wide():
  strips = _hand_made_sheet(num_rows=11).strips()
  assert len({strip.shape for strip in strips}) == 1


def test_titles_stand_above_their_columns():
  sheet = _hand_made_sheet(num_rows=2)
  titles = sheet.titles()
  strip = sheet.strips()[1]
  assert titles.shape[1:] == strip.shape[1:]
  tiles = [sheet.rows[1].original] + [
    view.repeat(6, axis=0).repeat(6, axis=1) for view in sheet.rows[1].views
  ]
  names = ['whole image', 'view 1', 'view 2', 'other view', 'other view']
  for tile, name in zip(tiles, names):
    (left,) = (
      left
      for left in range(strip.shape[1] - 95)
      if (strip[3:99, left : left + 96] == tile).all()
    )
    ink = lettering.line(name, 96)
    words = titles[-ink.shape[0] :, left : left + ink.shape[1], 0]
    np.testing.assert_array_equal(words < 128, ink > 100 / 148)


def test_without_letters_rows_have_numbers_alone(monkeypatch):
  monkeypatch.setattr(lettering, 'line', lambda text, max_width: None)
  sheet = _hand_made_sheet(num_rows=2)
  assert sheet.titles().shape[0] == 0
  # As in test_layout_of_a_row, without a name.
  width = 36 + 5 * 96 + 24 + 6 + 24 + 6 + 24
  assert [strip.shape for strip in sheet.strips()] == [(102, width, 3)] * 2


def test_rows_in_words():
  assert _hand_made_sheet(num_rows=2).describe().splitlines() == [
    'row  class          example   size  where',
    '  0  cow (was bee)      100  20x30  /data/cow/0.png',
    '  1  cow (was bee)      101  20x30  /data/cow/1.png',
  ]


def test_a_sheet_is_written_and_replaced(tmp_path):
  sheet = _hand_made_sheet(num_rows=3)
  (tmp_path / 'events.out.tfevents.1.other').write_text('mine')
  for _ in range(2):
    path = sheet.write(str(tmp_path))
  assert path == str(tmp_path / 'contact_sheet.png')
  picture = np.concatenate([sheet.titles(), *sheet.strips()])
  np.testing.assert_array_equal(np.array(Image.open(path)), picture)

  (events,) = tmp_path.glob('events.out.tfevents.*.contact_sheet')
  found = {}
  for event in tf1.train.summary_iterator(str(events)):
    for value in event.summary.value:
      width, height, png = value.tensor.string_val
      image = tf.io.decode_png(png).numpy()
      assert image.shape[:2] == (int(height), int(width))
      found[value.tag] = image, value.metadata.summary_description
  assert list(found) == ['contact_sheet', 'row_00/cow', 'row_01/cow'] + [
    'row_02/cow'
  ]
  np.testing.assert_array_equal(found['contact_sheet'][0], picture)
  np.testing.assert_array_equal(found['row_02/cow'][0], sheet.strips()[2])
  assert found['row_02/cow'][1] == '/data/cow/2.png'
  assert (tmp_path / 'events.out.tfevents.1.other').read_text() == 'mine'


def test_what_the_sheet_says_of_its_rows():
  said = json.loads(json.dumps(_hand_made_sheet(num_rows=2).to_json()))
  assert (
    said['columns']
    == ['whole image'] + ['view of the run'] * 2 + ['another view'] * 2
  )
  assert said['rows'][1] == {
    'row': 1,
    'example': 101,
    'class': 'cow',
    'class_before_label_noise': 'bee',
    'height': 20,
    'width': 30,
    'where': '/data/cow/1.png',
  }
