"""Tests of images in folders, of bad ones among them, and of measured colors.

Pillow writes the files and says what is in them.
"""

import io
import json
import math
import os
import unicodedata

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest
import tensorflow as tf

from supcon.config import hparams
from supcon.config import safe_text
from supcon.data import inputs
from supcon.data import whitening
from supcon.data.sources import datasets
from supcon.data.sources import faults
from supcon.data.sources import folder
from supcon.data.sources import listing

tf1 = tf.compat.v1

pytestmark = pytest.mark.usefixtures('no_network')


def _picture(width=32, height=32, seed=0):
  """A smooth picture with all colors, 8 bits per channel."""
  colors = np.random.RandomState(seed).randint(0, 256, (4, 4, 3))
  small = Image.fromarray(colors.astype(np.uint8))
  return small.resize((width, height), Image.Resampling.BILINEAR)


def _encoded(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _write(directory, files):
  """Writes {path below `directory`: bytes}."""
  for name, data in files.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return str(directory)


_PNG = _encoded(_picture(), 'PNG')
_FEW = {
  'train/cat/a.png': _PNG,
  'train/dog/a.png': _PNG,
  'val/dog/b.png': _PNG,
}


def _records(split):
  """Returns [(encoded image, label), ...]."""
  records = split.records().as_numpy_iterator()
  return [(encoded, int(label)) for encoded, label in records]


def _error(*args, **kwargs):
  """Returns the one-line message with which loading fails."""
  with pytest.raises(ValueError) as error:
    datasets.load('folder', *args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


# ------------------------------------------------------------------- listing


def test_classes_are_the_folders_of_the_training_split(tmp_path):
  files = {
    'train/dog/1.png': b'dog 1',
    'train/dog/2.JPG': b'dog 2',
    'train/ape/3.jpeg': b'ape 3',
    'train/ape/3.BMP': b'ape bmp',
    'train/ape/x.gif': b'ape gif',
    'train/cow/photo.jfif': b'cow jfif',
    'train/cow/photo.JPE': b'cow jpe',
    'train/cow/a b/4.png': b'in a folder of its own',
    'train/cow/{}.Png': b'cow',
    'val/dog/1.png': b'dog of val',
    'val/cow/7.jpg': b'cow of val',
    # None of these is an image of a class.
    'train/.hidden/1.png': b'',
    'train/cow/.1.png': b'',
    'train/cow/notes.txt': b'',
    'train/cow/png': b'',
    'train/labels.csv': b'',
    'readme.png': b'',
  }
  dataset = datasets.load('folder', _write(tmp_path, files))
  assert dataset.class_names == ('ape', 'cow', 'dog')
  assert dataset.num_classes == 3
  assert dataset.image_shape is None
  assert (dataset.info.train_split, dataset.info.eval_split) == ('train', 'val')
  assert dataset.num_train_examples == 8 and dataset.num_eval_examples == 2
  assert sorted(_records(dataset.train)) == [
    (b'ape 3', 0),
    (b'ape bmp', 0),
    (b'ape gif', 0),
    (b'cow', 1),
    (b'cow jfif', 1),
    (b'cow jpe', 1),
    (b'dog 1', 2),
    (b'dog 2', 2),
  ]
  # 5 + 7 + 7 + 3 + 8 + 7 + 5 + 5 bytes.
  assert dataset.num_bytes(is_train=True) == 47
  # Labels are those of training, although val has no apes.
  assert sorted(_records(dataset.evaluation)) == [
    (b'cow of val', 1),
    (b'dog of val', 2),
  ]


def test_one_line_says_what_is_left_out(tmp_path, warnings):
  files = {
    'train/cat/1.webp': b'',
    'train/dog/2.WEBP': b'',
    'val/dog/3.webp': b'',
    'train/cat/1.tif': b'',
    'train/cat/more/1.png': b'',
    'train/cat/more/2.png': b'',
    'train/dog/README': b'',
    'train/1.png': b'',
    'train/cat/.hidden.webp': b'',
  }
  _write(tmp_path, {**_FEW, **files})
  datasets.load('folder', str(tmp_path))
  assert warnings == [
    f'WARNING: left out of {tmp_path}, since only images directly in their '
    'folder are read (*.jpg, *.jpeg, *.png, *.bmp, *.gif): '
    f'3 *.webp (such as {tmp_path}/train/cat/1.webp), '
    f'1 *.png (such as {tmp_path}/train/1.png), '
    f'1 *.tif (such as {tmp_path}/train/cat/1.tif), '
    f'1 folders in folders of classes (such as {tmp_path}/train/cat/more), '
    f'1 without an ending (such as {tmp_path}/train/dog/README); convert or '
    'move them if they are to be used'
  ]


def test_the_line_stays_short_and_in_one_line(tmp_path, warnings):
  # A split that is trained and evaluated on is counted once.
  files = {f'train/cat/{i}.x{i}': b'' for i in range(9)}
  _write(tmp_path, {**_FEW, **files, 'train/cat/a\n.webp': b''})
  datasets.load('folder', str(tmp_path), eval_split='train')
  (line,) = warnings
  assert r'1 *.webp (such as ' in line and r'cat/a\n.webp)' in line
  # Ten kinds, of which six are named.
  assert ', 4 others; convert' in line


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, warnings):
  datasets.load('folder', _write(tmp_path, _FEW))
  assert not warnings


@pytest.mark.parametrize(
  'name', ['a\nb', 'a\r', '\x1b[2J', 'a\x85b', 'a\u2028b']
)
def test_classes_whose_names_break_lines_are_refused(name, tmp_path):
  message = _error(_write(tmp_path, {**_FEW, f'train/{name}/1.png': _PNG}))
  shown = safe_text.printable(f'{tmp_path}/train/{name}')
  assert message == (
    f'{shown} has a name that cannot be written in one line (in labels.txt, '
    'one class a line); rename the folder.'
  )


@pytest.mark.parametrize('split', ['train', 'val'])
def test_classes_that_look_the_same_are_refused(split, tmp_path):
  one, two = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
  files = {f'train/{one}/1.png': _PNG, f'{split}/{two}/1.png': _PNG}
  assert _error(_write(tmp_path, {**_FEW, **files})).endswith(
    ' differ only in how their letters are encoded '
    + (
      r"('caf\xe9' and 'cafe\u0301', normal forms of Unicode); "
      if split == 'train'
      else r"('cafe\u0301' and 'caf\xe9', normal forms of Unicode); "
    )
    + 'give both the same name, or names that look different.'
  )


@pytest.mark.parametrize(
  'path', [b'train/cat/caf\xe9.png', b'val/caf\xe9/1.png', b'caf\xe9']
)
def test_a_name_that_is_not_utf_8_is_named(path, tmp_path):
  _write(tmp_path, {**_FEW, os.fsdecode(path): _PNG})
  shown = os.path.dirname(f'{tmp_path}/{os.fsdecode(path)}')
  assert r'caf\udce9' in _error(str(tmp_path))
  assert 'has a name that is not UTF-8, like 1 of the ' in _error(str(tmp_path))
  assert safe_text.printable(shown).split('/caf')[0] in _error(str(tmp_path))


def test_order_is_always_the_same_and_mixes_the_classes(tmp_path):
  files = {
    f'train/{label}/{i}.png': f'{label}{i}'.encode()
    for label in 'ab'
    for i in range(100)
  }
  data_dir = _write(tmp_path / 'one', {**files, 'val/a/0.png': b''})
  # Written in another order, and elsewhere.
  again = _write(
    tmp_path / 'two', {'val/a/0.png': b'', **dict(reversed(files.items()))}
  )
  first, second = (datasets.load('folder', d).train for d in (data_dir, again))
  records = _records(first)
  assert _records(second) == records == _records(first)
  assert first.fingerprint == second.fingerprint
  # Half of 200 examples, drawn at random: 50 of each class within 4 standard
  # deviations, sqrt(100 / 4 x 100 / 199) = 3.5.
  assert 36 < sum(label for _, label in records[:100]) < 64
  # Nor do those of one name, a/7.png and b/7.png, follow one another: that
  # happens to one pair in 200 x 1 / 199 by chance.
  names = [encoded[1:] for encoded, _ in records]
  assert sum(map(str.__eq__, map(str, names), map(str, names[1:]))) < 8
  # One more file changes the place of none of the others.
  (tmp_path / 'one' / 'train' / 'b' / 'new.png').write_bytes(b'new')
  more = datasets.load('folder', data_dir).train
  assert [r for r in _records(more) if r[0] != b'new'] == records
  assert more.fingerprint != first.fingerprint
  assert [more.where(i).split('/')[-2] for i in range(201)] == [
    'ab'[label] for _, label in _records(more)
  ]


def test_limit_and_selection_keep_the_order(tmp_path):
  files = {f'train/a/{i}.png': b'%d' % i for i in range(9)}
  data_dir = _write(
    tmp_path, {**files, 'train/b/9.png': b'9', 'val/a/0.png': b''}
  )
  everything = datasets.load('folder', data_dir).train
  limited = datasets.load('folder', data_dir, max_train_examples=4).train
  assert limited.num_examples == 4
  assert _records(limited) == _records(everything)[:4]
  chosen = everything.select([0, 3, 8])
  assert _records(chosen) == [_records(everything)[i] for i in (0, 3, 8)]
  assert [chosen.where(i) for i in range(3)] == [
    everything.where(i) for i in (0, 3, 8)
  ]
  assert (everything.num_bytes, chosen.num_bytes) == (10, 3)
  # Selections of selections.
  assert _records(chosen.select([2])) == [_records(everything)[8]]


def test_ids_are_the_same_on_every_machine(tmp_path):
  files = {f'{name}/{i}.png': _PNG for name in ('cat', 'dog') for i in range(9)}
  files = {**_FEW, **{f'val/{path}': data for path, data in files.items()}}
  for place in ('here', 'there'):
    data_dir = _write(tmp_path / place, files)
    split = datasets.load('folder', data_dir).evaluation
    ids = [split.example_id(i) for i in range(split.num_examples)]
    assert sorted(ids) == sorted(f for f in files if f.startswith('val/'))
    assert [split.where(i) for i in range(len(ids))] == [
      f'{data_dir}/{found}' for found in ids
    ]
    assert split.select([2, 7]).example_id(1) == ids[7]


def test_a_link_to_nothing_is_a_bad_image(tmp_path):
  data_dir = _write(tmp_path, _FEW)
  (tmp_path / 'train' / 'dog' / 'b.png').symlink_to('nothing')
  split = datasets.load('folder', data_dir).train
  assert split.num_bytes == 2 * len(_PNG)
  (bad,) = faults.find(split)
  assert split.example_id(bad) == 'train/dog/b.png'


def test_size_is_estimated_from_a_fair_sample(tmp_path, monkeypatch):
  monkeypatch.setattr(listing, 'MAX_MEASURED', 3)
  files = {f'train/{i}/{i}.png': b'x' * 100 for i in range(10)}
  split = datasets.load(
    'folder', _write(tmp_path, {**files, 'val/1/1.png': b''})
  ).train
  # 10 files in steps of 4: three are looked at, of 100 bytes each.
  sizes = []
  stat = tf.io.gfile.stat
  monkeypatch.setattr(
    tf.io.gfile, 'stat', lambda path: sizes.append(path) or stat(path)
  )
  assert listing.estimate_bytes(split) == 1000
  assert sorted(sizes) == sorted(split.where(i) for i in (0, 4, 8))


@pytest.mark.parametrize(
  'name, shown',
  [
    ('n01440764/a b.JPEG', 'n01440764/a b.JPEG'),
    ('猫 é\u3000🐈.png', '猫 é\u3000🐈.png'),
    # A family and a Persian word are held together by invisible marks.
    ('👩\u200d👧 می\u200cخواهم', '👩\u200d👧 می\u200cخواهم'),
    ('two\nlines\r\t', r'two\nlines\r\t'),
    ('\x1b[2J\x9b\x7f\0', r'\x1b[2J\x9b\x7f\x00'),
    ('gpj.\u202egnp\u2028', r'gpj.\u202egnp\u2028'),
    ('caf\udce9', r'caf\udce9'),
    ('back\\slash', 'back\\slash'),
  ],
)
def test_names_can_be_printed(name, shown):
  assert safe_text.printable(name) == shown


@pytest.mark.parametrize(
  'names, chosen',
  [
    (['test'], 'test'),
    (['test', 'validation'], 'validation'),
    (['test', 'validation', 'val'], 'val'),
    (['valid', 'test'], 'test'),
  ],
)
def test_evaluation_split_is_found(names, chosen, tmp_path):
  files = {f'{name}/cat/{name}.png': b'' for name in ['train', *names]}
  dataset = datasets.load('folder', _write(tmp_path, files))
  assert dataset.info.eval_split == dataset.evaluation.name == chosen
  assert dataset.evaluation.where(0) == f'{tmp_path}/{chosen}/cat/{chosen}.png'


def test_splits_can_be_chosen(tmp_path):
  data_dir = _write(tmp_path, {**_FEW, 'extra/cat/e.png': b'extra'})
  dataset = datasets.load('folder', data_dir, eval_split='extra')
  assert _records(dataset.evaluation) == [(b'extra', 0)]
  dataset = datasets.load(
    'folder', data_dir, train_split='val', eval_split='val'
  )
  assert dataset.class_names == ('dog',)
  assert dataset.info.train_split == dataset.info.eval_split == 'val'


def test_joined_folders_are_read_one_after_the_other(tmp_path):
  _write(
    tmp_path,
    {
      f'{name}/{label}/{number}.png': f'{name} {label} {number}'.encode()
      for name, labels in (('a/1', 'xy'), ('a/2', 'yz'), ('b', 'x'))
      for label in labels
      for number in range(3)
    },
  )
  parts = [
    folder.load_evaluation(str(tmp_path), name).evaluation
    for name in ('a/1', 'a/2', 'b')
  ]
  parts[0] = parts[0].select([0, 2, 5])
  other = datasets.load('digits', str(tmp_path)).evaluation.select([1, 4])
  parts.insert(2, other)
  together = folder.joined(parts)
  assert together.num_examples == 3 + 6 + 2 + 3
  assert _records(together) == [
    record for part in parts for record in _records(part)
  ]


def test_any_file_system_will_do():
  tf.io.gfile.makedirs('ram://set/train/cat')
  tf.io.gfile.makedirs('ram://set/test/cat')
  for name in ('train/cat/1.png', 'test/cat/2.png'):
    with tf.io.gfile.GFile(f'ram://set/{name}', 'wb') as file:
      file.write(name)
  dataset = datasets.load('folder', 'ram://set')
  assert _records(dataset.train) == [(b'train/cat/1.png', 0)]
  assert _records(dataset.evaluation) == [(b'test/cat/2.png', 0)]


def test_names_do_not_swell_the_graph():
  # As many bytes in each checkpoint.
  num = 20000
  split = folder.FolderSplit(
    name='train',
    folder='train',
    directory='/data/train',
    class_names=('n01440764', 'n01443537'),
    labels=np.arange(num, dtype=np.int32) % 2,
    files=tuple(f'n01440764_{7919 * i % 50000}.JPEG' for i in range(num)),
    num_bytes=1,
  )
  with tf.Graph().as_default() as graph:
    split.records()
    # Half of what their names alone take.
    assert graph.as_graph_def().ByteSize() < sum(map(len, split.files)) / 2


@pytest.mark.parametrize(
  'files, words',
  [
    ({}, 'none of train is there, only nothing; choose with --train_split'),
    ({'dog/1.png': _PNG}, 'none of train is there, only dog'),
    (
      {'train/dog/1.png': _PNG, 'dev/dog/1.png': _PNG},
      'none of val, validation, test is there, only dev, train; choose with '
      '--eval_split',
    ),
    (
      {'train/1.png': _PNG, 'train/2.jpg': _PNG, 'val/1.png': _PNG},
      '/train holds no folders of classes, but 2 images of no class; expected ',
    ),
    (
      {'1.png': _PNG, '2.jpg': _PNG, 'labels.csv': b''},
      '. It holds 2 images itself: sort them into a folder for each class, {}/'
      'train/CLASS/*{{.jpg,.jpeg,.png,.bmp,.gif}} and ',
    ),
    (
      {'cat/1.png': _PNG, 'dog/1.png': _PNG},
      'If cat, dog are the classes, move them into {0}/train, and some images '
      'of each into {0}/val, or take parts of each: ',
    ),
    (
      {**_FEW, 'train/emu/1.txt': b''},
      '/train/emu holds no images (*.jpg, *.jpeg, *.png, *.bmp, *.gif); add '
      'some or delete the folder. The same is true of 1 of the 3 class '
      'folders; it holds 1.txt.',
    ),
    ({**_FEW, 'val/cat/.1.png': b''}, '/val/cat holds no images'),
    (
      {**_FEW, 'val/wolf/1.png': _PNG},
      '/val/wolf is not a class of {}/train (cat, dog). The same is true of 1 '
      'of the 2 folders there: give them the names of classes, move or delete '
      'them, or choose another split with --eval_split (train, val).',
    ),
    (
      {**_FEW, 'val/dogs/1.png': _PNG},
      '/val/dogs is not a class of {}/train (cat, dog; is dog meant?). The ',
    ),
  ],
)
def test_wrong_layouts(files, words, tmp_path):
  assert words.format(tmp_path) in _error(_write(tmp_path, files))


def test_wrong_places(tmp_path):
  assert 'needs --data_dir' in _error(None)
  assert '/none is not a directory' in _error(f'{tmp_path}/none')
  _write(tmp_path, _FEW)
  assert f'--eval_split=dev is not in --data_dir={tmp_path}' in _error(
    str(tmp_path), eval_split='dev'
  )
  assert ', which holds train, val.' in _error(str(tmp_path), train_split='dev')


# ------------------------------------------------------------------- decoding


def _params(image_size, **fields):
  params = hparams.parse(f'ds=folder,is={image_size},au=i,ec=cr,cp=0,bs=1')
  for name, value in fields.items():
    params = params.replace(name, value)
  return params


def _batch(data_dir, params, is_train, batch_size):
  """Returns (views as grey levels, labels) of the first batch."""
  dataset = datasets.load('folder', data_dir)
  make = inputs.train_input_fn if is_train else inputs.eval_input_fn
  with tf.Graph().as_default(), tf1.Session() as session:
    batches = make(dataset, params, tf.float32)({'batch_size': batch_size})
    iterator = tf1.data.make_initializable_iterator(batches)
    batch = iterator.get_next()
    session.run(iterator.initializer)
    features, labels = session.run(batch)
  return (features['images'] + 1) * 127.5, labels


def _bmp_of_4_bits(indices, palette):
  """A BMP of 16 colors, as Pillow does not write it; the top row is first."""
  height, width = indices.shape
  padded = np.pad(indices, ((0, 0), (0, -width % 8)))
  rows = (padded[:, ::2] * 16 + padded[:, 1::2]).astype(np.uint8).tobytes()
  colors = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
  begin = 54 + len(colors)
  header = np.array([begin + len(rows), 0, begin, 40, width, -height], '<i4')
  rest = np.array([0, len(rows), 0, 0, 16, 0], '<i4')
  return b'BM%s\x01\0\x04\0%s%s%s' % (
    header.tobytes(),
    rest.tobytes(),
    colors,
    rows,
  )


def test_files_of_every_kind(tmp_path):
  # Each kind is a class; evaluation images of their own size stay as they are.
  picture = _picture()
  transparent = picture.copy()
  transparent.putalpha(picture.convert('L'))
  palette = picture.convert('P', palette=Image.Palette.ADAPTIVE)
  images = {
    'grey.jpg': (picture.convert('L'), 'JPEG'),
    'color.jpeg': (picture, 'JPEG'),
    'cmyk.jpg': (picture.convert('CMYK'), 'JPEG'),
    'progressive.JPG': (picture, 'JPEG'),
    'grey.png': (picture.convert('L'), 'PNG'),
    'black_and_white.png': (picture.convert('1'), 'PNG'),
    'grey_transparent.png': (transparent.convert('LA'), 'PNG'),
    'color.png': (picture, 'PNG'),
    'transparent.png': (transparent, 'PNG'),
    'palette.png': (palette, 'PNG'),
    'misnamed_jpeg.png': (picture, 'JPEG'),
    'grey.bmp': (picture.convert('L'), 'BMP'),
    'black_and_white.bmp': (picture.convert('1'), 'BMP'),
    'palette.bmp': (palette, 'BMP'),
    'color.bmp': (picture, 'BMP'),
    'transparent.bmp': (transparent, 'BMP'),
    'color.gif': (picture, 'GIF'),
    'animated.gif': (picture, 'GIF'),
  }
  options = {
    'progressive.JPG': {'progressive': True},
    'animated.gif': {
      'save_all': True,
      'append_images': [_picture(seed=1), _picture(seed=2)],
    },
  }
  encoded = {
    name: _encoded(image, kind, **options.get(name, {}))
    for name, (image, kind) in images.items()
  }
  indices = np.arange(32 * 32).reshape([32, 32]) * 7 % 16
  colors = np.random.RandomState(3).randint(0, 256, (16, 3))
  encoded['four_bits.bmp'] = _bmp_of_4_bits(indices, colors)
  expected = {
    name: np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    for name, data in encoded.items()
  }
  # Transparency is dropped, colors beneath it stay.
  np.testing.assert_array_equal(expected['transparent.png'], picture)
  np.testing.assert_array_equal(expected['four_bits.bmp'], colors[indices])

  files = {f'val/{name}/{name}': data for name, data in encoded.items()}
  data_dir = _write(
    tmp_path, {**files, **{f'train{k[3:]}': v for k, v in files.items()}}
  )
  found, labels = _batch(data_dir, _params(32), False, len(files))
  class_names = datasets.load('folder', data_dir).class_names
  for image, label in zip(found, labels):
    name = class_names[label]
    # Decoders of JPEG differ in how they smooth colors; a wrong color, such as
    # an inverted one of CMYK, would differ by far more.
    tolerance = 12 if encoded[name].startswith(b'\xff\xd8') else 0.01
    difference = np.abs(image[0] - expected[name]).max()
    assert difference <= tolerance, (name, difference)
  trained, _ = _batch(data_dir, _params(32), True, 1)
  assert trained.shape == (1, 2, 32, 32, 3)


def _photo(orientation):
  """(JPEG of 16 x 24 pixels that has to be turned, what it shows)."""
  exif = Image.Exif()
  exif[0x112] = orientation
  # Grey, since a decoder smooths chroma beyond the border of a window.
  data = _encoded(_picture(24, 16).convert('L'), 'JPEG', exif=exif)
  upright = Image.fromarray(tf.io.decode_jpeg(data, channels=3).numpy())
  upright.getexif()[0x112] = orientation
  return data, np.asarray(ImageOps.exif_transpose(upright))


def test_photos_of_a_turned_camera_are_upright(tmp_path):
  photos = [_photo(orientation) for orientation in range(1, 9)]
  files = {
    f'{split}/{label}/photo.jpg': data
    for split in ('train', 'val')
    for label, (data, _) in enumerate(photos)
  }
  found, labels = _batch(_write(tmp_path, files), _params(8), False, 8)
  assert sorted(labels) == [*range(8)]
  for image, label in zip(found, labels):
    # The central square of 16 x 16, to 8 x 8 pixels: every other one.
    top, left = [side // 2 - 8 for side in photos[label][1].shape[:2]]
    expected = photos[label][1][top : top + 16 : 2, left : left + 16 : 2]
    np.testing.assert_allclose(image[0], expected, atol=0.01)


def test_graph_has_static_shapes_and_no_python(tmp_path):
  files = {**_FEW, 'train/cat/palette.bmp': _encoded(_picture(), 'BMP')}
  dataset = datasets.load('folder', _write(tmp_path, files))
  for make in (inputs.train_input_fn, inputs.eval_input_fn):
    with tf.Graph().as_default() as graph:
      batches = make(dataset, _params(16), tf.bfloat16)({'batch_size': 2})
      features, labels = batches.element_spec
      spec = tf.TensorSpec([2, 2, 16, 16, 3], tf.bfloat16)
      assert features['images'] == spec
      assert labels == tf.TensorSpec([2], tf.int32)
      graph_def = graph.as_graph_def()
    ops = {node.op for node in graph_def.node}
    for function in graph_def.library.function:
      ops.update(node.op for node in function.node_def)
    assert 'ReadFile' in ops and not {op for op in ops if 'PyFunc' in op}


@pytest.mark.parametrize('is_train', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (8000, 6000)])
def test_smallest_and_largest(size, is_train, tmp_path):
  color = (200, 90, 30)
  image = Image.new('RGB', size, color)
  kinds = ['PNG', 'JPEG', 'BMP', 'GIF'] if size == (1, 1) else ['JPEG', 'PNG']
  files = {
    f'{split}/{kind}/1.{kind}': _encoded(image, kind)
    for kind in kinds
    for split in ('train', 'val')
  }
  data_dir = _write(tmp_path, files)
  images, _ = _batch(data_dir, _params(24), is_train, len(kinds))
  assert images.shape == (len(kinds), 2, 24, 24, 3)
  # Of one color everywhere, which JPEG changes a little.
  assert np.abs(images - color).max() <= 4


# ----------------------------------------------------------------- bad images


_TRUNCATED = _encoded(_picture(), 'JPEG')[:-60]
_BAD = {
  'train/cat/empty.png': (b'', 'Input is empty'),
  'train/cat/text.jpg': (b'Not found. ' * 9, 'Unknown image file format'),
  'train/dog/cut.jpg': (_TRUNCATED, 'Invalid JPEG data'),
  'train/dog/cut.png': (_PNG[:-30], 'Invalid PNG data'),
  'train/dog/cut.gif': (_encoded(_picture(), 'GIF')[:-99], 'Invalid GIF data'),
  'train/dog/cut.bmp': (_encoded(_picture(), 'BMP')[:-99], 'header_size'),
}


@pytest.fixture
def with_bad_ones(tmp_path):
  good = {f'train/{c}/{i}.png': _PNG for i in range(40) for c in ('cat', 'dog')}
  bad = {name: data for name, (data, _) in _BAD.items()}
  data_dir = _write(tmp_path, {**_FEW, **good, **bad})
  return datasets.load('folder', data_dir).train


def test_bad_images_are_found_and_left_out(with_bad_ones, tmp_path):
  bad = faults.find(with_bad_ones)
  assert bad == sorted(bad)
  assert {with_bad_ones.where(position) for position in bad} == {
    f'{tmp_path}/{name}' for name in _BAD
  }
  for position in bad:
    line = faults.describe(with_bad_ones, position)
    path = with_bad_ones.where(position)
    _, words = _BAD[path.removeprefix(f'{tmp_path}/')]
    assert line.startswith(f'{path} cannot be used: ') and words in line
    assert '\n' not in line and '[[' not in line

  rest = faults.without(with_bad_ones, bad)
  assert rest.num_examples == 82
  assert {image for image, _ in _records(rest)} == {_PNG}
  assert faults.find(rest) == []
  assert faults.explain(rest) is None
  assert faults.without(rest, []) is rest
  faults.check_if_quick(rest)


def test_first_bad_image_is_named(with_bad_ones, monkeypatch):
  first = with_bad_ones.where(faults.find(with_bad_ones)[0])
  assert faults.explain(with_bad_ones).startswith(f'{first} cannot be used: ')
  with pytest.raises(ValueError) as error:
    faults.check_if_quick(with_bad_ones)
  assert str(error.value).startswith(f'{first} cannot be used: ')
  assert '. 6 of 88 images are bad (' in str(error.value)
  for path in _BAD:
    assert path in str(error.value)
  assert str(error.value).endswith(
    '); delete what is bad, or skip it with --skip_bad_images.'
  )
  # Larger sets would have to wait.
  monkeypatch.setattr(faults, 'MAX_BYTES_UNASKED', with_bad_ones.num_bytes - 1)
  faults.check_if_quick(with_bad_ones)


def test_file_that_has_gone_is_named(tmp_path):
  split = datasets.load('folder', _write(tmp_path, _FEW)).evaluation
  (tmp_path / 'val' / 'dog' / 'b.png').unlink()
  assert faults.explain(split).startswith(
    f'{tmp_path}/val/dog/b.png cannot be used: '
  )


def test_nothing_but_bad_images(tmp_path):
  files = {**_FEW, 'val/dog/b.png': b''}
  split = datasets.load('folder', _write(tmp_path, files)).evaluation
  with pytest.raises(ValueError, match='none of the 1 images of val can be'):
    faults.without(split, faults.find(split))


# -------------------------------------------------------------------- batches


def _check(data_dir, **fields):
  params = _params(32, batch_size=2, **fields)
  inputs.check(datasets.load('folder', data_dir), params)


def test_one_class_is_no_task_unless_labels_do_not_count(tmp_path):
  files = {'train/all/1.png': _PNG, 'train/all/2.png': _PNG}
  data_dir = _write(tmp_path, {**files, 'val/all/1.png': _PNG})
  with pytest.raises(ValueError, match='one class only, all: there is nothing'):
    _check(data_dir)
  without_labels = {'loss.contrastive.use_labels': False}
  # The classifier of stage 2 needs them all the same.
  with pytest.raises(ValueError, match='one class only'):
    _check(data_dir, **without_labels)
  _check(data_dir, **without_labels, **{'stage_2.epochs': 0})


def test_fewer_images_than_a_batch(tmp_path):
  data_dir = _write(tmp_path, _FEW)
  _check(data_dir)
  params = _params(32, batch_size=3)
  with pytest.raises(ValueError, match='--batch_size=3 is larger than the 2'):
    inputs.check(datasets.load('folder', data_dir), params)


# ------------------------------------------------------------------ whitening


def test_mean_and_standard_deviation_by_hand(tmp_path):
  # Two images, of two and four pixels: each counts as one image of 2 x 2.
  one = np.array([[[0, 255, 10], [0, 255, 10]]] * 2, np.uint8)
  two = np.array([[[255, 255, 20], [0, 255, 30]]] * 2, np.uint8)
  data_dir = _write(
    tmp_path,
    {
      'train/a/1.png': _encoded(Image.fromarray(one[:1]), 'PNG'),
      'train/b/2.png': _encoded(Image.fromarray(two), 'PNG'),
      'val/a/1.png': _PNG,
    },
  )
  split = datasets.load('folder', data_dir).train
  found = whitening.measure(split, image_size=2)
  assert (found.num_images, found.image_size) == (2, 2)
  # Red: of eight pixels, two are 1 and six are -1: mean -0.5, mean square 1.
  # Blue: four 10, two 20, two 30; mean 17.5, variance 56.25 + 12.5 = 68.75.
  np.testing.assert_allclose(
    found.mean, [-0.5, 1, 17.5 / 127.5 - 1], rtol=1e-12
  )
  # Green never changes: half a grey level.
  np.testing.assert_allclose(
    found.std, [0.75**0.5, 0.5 / 127.5, 68.75**0.5 / 127.5], rtol=1e-12
  )
  assert whitening.measure(split, image_size=2) == found


def test_measured_colors_are_kept(tmp_path, monkeypatch):
  split = datasets.load('folder', _write(tmp_path, _FEW)).train
  monkeypatch.setattr(whitening, 'MAX_IMAGES', 1)
  found = whitening.measure(split, image_size=8)
  assert found.num_images == 1
  fields = json.loads(found.to_json())
  assert whitening.from_json(fields) == found
  nothing = whitening.Statistics(None, None)
  assert whitening.from_json(json.loads(nothing.to_json())) == nothing


_NO_COLORS = [
  ({'mean': [0, 0]}, r'mean is \[0, 0\]'),
  ({'mean': [0, math.nan, 0]}, 'mean is'),
  ({'std': [1, 1, 0]}, r'std is \[1, 1, 0\]'),
  ({'std': None}, 'one of them is missing'),
  ({'sum': 3}, 'unexpected'),
]


@pytest.mark.parametrize('change, reason', _NO_COLORS)
def test_other_values_are_no_colors(change, reason):
  fields = {'mean': [0.0] * 3, 'std': [1.0] * 3}
  with pytest.raises((TypeError, ValueError), match=reason):
    whitening.from_json({**fields, **change})


# -------------------------------------------------------------------- parts


def _ids(split):
  return {split.example_id(p) for p in range(split.num_examples)}


def _of_two_classes(directory, prefix, num_cats=10, num_dogs=5):
  files = {f'{prefix}cat/{i}.png': b'cat' for i in range(num_cats)}
  files |= {f'{prefix}dog/{i}.png': b'dog' for i in range(num_dogs)}
  return _write(directory, files), set(files)


@pytest.mark.parametrize('name, prefix', [('train', 'train/'), ('.', '')])
def test_a_split_may_be_a_part_of_each_class(tmp_path, name, prefix):
  data_dir, files = _of_two_classes(tmp_path, prefix)
  parts = {'train_split': f'{name}[:80%]', 'eval_split': f'{name}[80%:]'}
  dataset = datasets.load('folder', data_dir, **parts)
  assert dataset.class_names == ('cat', 'dog')
  # 80% of 10 and of 5.
  assert np.bincount(dataset.train.labels).tolist() == [8, 4]
  assert np.bincount(dataset.evaluation.labels).tolist() == [2, 1]
  # They share nothing, and together they are all.
  train, evaluation = _ids(dataset.train), _ids(dataset.evaluation)
  assert train | evaluation == files
  assert not train & evaluation
  assert dataset.train.name == parts['train_split']
  assert dataset.evaluation.name == parts['eval_split']
  for position in range(3):
    split = dataset.evaluation
    assert split.where(position) == f'{data_dir}/{split.example_id(position)}'
  assert sorted(_records(dataset.evaluation)) == [
    (b'cat', 0),
    (b'cat', 0),
    (b'dog', 1),
  ]
  again = datasets.load('folder', data_dir, **parts)
  assert again.train.fingerprint == dataset.train.fingerprint
  assert again.evaluation.fingerprint == dataset.evaluation.fingerprint


def test_parts_keep_the_order_of_the_whole(tmp_path):
  data_dir, _ = _of_two_classes(tmp_path, 'train/')
  whole = datasets.load('folder', data_dir, eval_split='train').train
  part = datasets.load(
    'folder', data_dir, train_split='train[20%:]', eval_split='train[:20%]'
  ).train
  order = [whole.where(p) for p in range(15)]
  kept = [part.where(p) for p in range(12)]
  assert kept == [path for path in order if path in kept]


def test_parts_of_odd_numbers_share_no_image(tmp_path):
  data_dir, files = _of_two_classes(tmp_path, 'train/', 7, 3)
  names = ('train[:33%]', 'train[33%:67%]', 'train[67%:]')
  found = []
  for name in names:
    loaded = datasets.load('folder', data_dir, 0, 'train', name)
    found += _ids(loaded.evaluation)
  assert sorted(found) == sorted(files)


def test_a_folder_may_be_called_like_a_part(tmp_path):
  files = {**_FEW, 'val[:50%]/cat/1.png': _PNG}
  dataset = datasets.load(
    'folder', _write(tmp_path, files), eval_split='val[:50%]'
  )
  assert _ids(dataset.evaluation) == {'val[:50%]/cat/1.png'}


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      ('train[:12]', 'val'),
      "--train_split=train[:12]: '12' is not a percent",
    ),
    (
      ('train[x%:]', 'val'),
      "--train_split=train[x%:]: 'x%' is not a percent",
    ),
    (('train', 'val[:101%]'), "--eval_split=val[:101%]: '101%' is not a perc"),
    (('train[:10%]', 'val'), '--train_split=train[:10%] takes a part of each '),
    (('train', 'val[50%:50%]'), '--eval_split=val[50%:50%] takes a part of e'),
    (('part[:10%]', 'val'), '--train_split=part[:10%] is not in --data_dir='),
  ],
)
def test_what_is_no_part_is_named(tmp_path, flags, message):
  assert message in _error(_write(tmp_path, _FEW), 0, *flags)


def test_advises_parts_where_classes_are_in_no_split(tmp_path):
  files = {'cat/1.png': _PNG, 'dog/1.png': _PNG}
  error = _error(_write(tmp_path, files))
  assert "--train_split='.[:80%]' --eval_split='.[80%:]'" in error
