"""Tests of images that are named one by one, or by folder."""

import os

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest
import tensorflow as tf

from supcon.data.sources import faults
from supcon.data.sources import unlabelled
from supcon.data.views import image_ops

tf1 = tf.compat.v1

pytestmark = pytest.mark.usefixtures('no_network')


def _png(level):
  """A picture of one pixel."""
  pixel = np.full([1, 1, 3], level, np.uint8)
  return tf.io.encode_png(pixel).numpy()


def _write(directory, *names):
  """Writes pictures; that of number i has level i."""
  for i, name in enumerate(names):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(i))


def _stored_pixels(path):
  return tf.io.decode_jpeg(path.read_bytes()).numpy()[..., 0]


def _levels(split):
  """Returns the level of each picture, as a graph reads them."""
  with tf.Graph().as_default(), tf1.Session() as session:
    records = split.records()
    assert records.element_spec == (
      tf.TensorSpec([], tf.string),
      tf.TensorSpec([], tf.int32),
    )
    record = tf1.data.make_one_shot_iterator(records).get_next()
    found = [session.run(record) for _ in range(split.num_examples)]
    with pytest.raises(tf.errors.OutOfRangeError):
      session.run(record)
  assert {int(label) for _, label in found} == {unlabelled.NO_LABEL} == {-1}
  return [int(tf.io.decode_image(image)[0, 0, 0]) for image, _ in found]


def _files(paths, root):
  """Returns what is found, without the folder `root` before it."""
  files = unlabelled.find(
    [f'{root}/{path}' if path else str(root) for path in paths]
  )
  assert all(file.startswith(f'{root}/') for file in files.files)
  return [file[len(str(root)) + 1 :] for file in files.files]


def _error(paths):
  """Returns the one-line message with which finding fails."""
  with pytest.raises(ValueError) as error:
    unlabelled.find(paths)
  assert '\n' not in str(error.value)
  assert type(error.value) is ValueError
  return str(error.value)


def test_files_are_taken_as_they_are_named(tmp_path):
  _write(tmp_path, 'b.png', 'a.JPG', 'upload', '.hidden.png', 'x.txt')
  paths = [f'{tmp_path}/{name}' for name in os.listdir(tmp_path)]
  paths.sort(reverse=True)
  images = unlabelled.find(paths)
  assert images.name == 'images' and images.num_examples == 5
  assert list(images.files) == paths
  assert [images.example_id(i) for i in range(5)] == paths
  assert [images.where(i) for i in range(5)] == paths
  # x.txt, upload, b.png, a.JPG, .hidden.png.
  assert _levels(images) == [4, 2, 0, 1, 3]
  assert images.num_bytes == sum(map(os.path.getsize, paths))
  assert images.damage() is None
  assert faults.find(images) == []


def test_folders_are_searched_to_the_bottom(tmp_path):
  _write(
    tmp_path,
    'pics/b.png',
    'pics/a/deep/er/z.Gif',
    'pics/a/c.jpeg',
    'pics/a b/c.bmp',
    'pics/d.jpg/e.jpg',
    # None of these is an image to be taken.
    'pics/notes.txt',
    'pics/png',
    'pics/.b.png',
    'pics/.cache/f.png',
    'other/g.png',
  )
  expected = ['a b/c.bmp', 'a/c.jpeg', 'a/deep/er/z.Gif', 'b.png']
  expected = [f'pics/{name}' for name in (*expected, 'd.jpg/e.jpg')]
  assert _files(['pics'], tmp_path) == expected
  assert _levels(unlabelled.find([f'{tmp_path}/pics'])) == [3, 2, 1, 0, 4]
  # A folder that is hidden is searched if it is named itself.
  assert _files(['pics/.cache', 'pics'], tmp_path) == [
    'pics/.cache/f.png',
    *expected,
  ]


def test_what_is_named_twice_is_kept_once(tmp_path, monkeypatch):
  _write(tmp_path, 'a/1.png', 'a/2.png', 'b/1.png')
  monkeypatch.chdir(tmp_path)
  found = unlabelled.find(
    ['a/2.png', './a/2.png', 'a', 'a/', str(tmp_path), 'b']
  )
  # As it was named first; of two files of the same name both.
  assert found.files == ('a/2.png', 'a/1.png', f'{tmp_path}/b/1.png')
  assert unlabelled.find(['.']).files == ('./a/1.png', './a/2.png', './b/1.png')
  assert unlabelled.find(['a/', 'a']).files == ('a/1.png', 'a/2.png')
  assert _levels(found) == [1, 0, 2]


def test_links_in_circles_end(tmp_path):
  _write(tmp_path, 'a/1.png', 'b/2.png')
  for link, target in (
    ('a/0', '.'),
    ('a/up', '..'),
    ('a/to_b', '../b'),
    ('b/to_a', '../a'),
    ('b/nowhere', 'nowhere'),
    ('c', 'a'),
  ):
    (tmp_path / link).symlink_to(target)
  # c is a by another name.
  assert _files([''], tmp_path) == ['a/1.png', 'b/2.png']
  assert _files(['a'], tmp_path) == ['a/1.png', 'a/to_b/2.png']
  assert _files(['c/1.png', 'a'], tmp_path) == ['c/1.png', 'a/to_b/2.png']
  # A link to a file is a file.
  (tmp_path / 'b' / '3.png').symlink_to('2.png')
  assert _files(['b/3.png', 'b/2.png'], tmp_path) == ['b/3.png', 'b/2.png']


def test_a_link_to_nothing_is_a_bad_image(tmp_path):
  _write(tmp_path, '1.png')
  (tmp_path / '2.png').symlink_to('nothing')
  images = unlabelled.find([str(tmp_path)])
  assert faults.find(images) == [1]
  assert f'{tmp_path}/2.png cannot be used: ' in faults.describe(images, 1)
  assert _error([f'{tmp_path}/2.png']).endswith(
    '2.png does not exist; name an image file, or a folder of them.'
  )


@pytest.mark.parametrize(
  'name',
  ['two words.png', 'two\nlines.png', '猫 🐈.png', 'é\x1b[2J.png', '*?[a].png']
  + ['~.png', 'a\'b"c,d;$e.png', 'back\\slash.png', '-flag.png', '%s.png'],
)
def test_any_name_will_do(name, tmp_path, monkeypatch):
  _write(tmp_path, 'other.png', f'folder {name}/{name}')
  path = f'{tmp_path}/folder {name}/{name}'
  for paths in ([path], [os.path.dirname(path)]):
    images = unlabelled.find(paths)
    assert images.example_id(0) == path
    assert _levels(images) == [1]
  monkeypatch.chdir(tmp_path / f'folder {name}')
  assert unlabelled.find([name]).files == (name,)


def test_names_that_are_no_text(tmp_path):
  name = os.fsdecode(b'caf\xe9.png')
  (tmp_path / name).write_bytes(_png(0))
  assert _error([f'{tmp_path}/{name}']) == (
    f'--images={tmp_path}/caf\\udce9.png is a name that is not UTF-8; rename '
    'it.'
  )
  assert _error([str(tmp_path)]) == (
    f'{tmp_path}/caf\\udce9.png has a name that is not UTF-8, like 1 of '
    'the 1 names in the folder; rename what is not.'
  )


def test_one_line_says_what_is_left_out(tmp_path, warnings):
  _write(
    tmp_path, 'a/1.jfif', 'a/2.webp', 'a/deep/3.webp', 'b/4.jpe', 'b/5.txt'
  )
  assert _files(['a', 'b'], tmp_path) == ['a/1.jfif', 'b/4.jpe']
  (line,) = warnings
  assert f': 2 *.webp (such as {tmp_path}/a/2.webp), 1 *.txt (such as ' in line


def test_a_name_with_a_comma(tmp_path, monkeypatch):
  _write(tmp_path, 'a,b,c.png')
  monkeypatch.chdir(tmp_path)
  # As --images=a,b,c.png is read.
  assert _error(['a', 'b', 'c.png', 'd.png']) == (
    '--images=a does not exist; name an image file, or a folder of them. '
    'Commas separate names in --images; give a,b,c.png as an argument without '
    '--images= after the flags.'
  )
  assert unlabelled.find(['a,b,c.png']).num_examples == 1
  assert _error(['a', 'b']).endswith('or a folder of them.')


def test_any_file_system_will_do():
  tf.io.gfile.makedirs('ram://loose/folder.png')
  for i, name in enumerate(('b', 'folder.png/a.png', 'a.png')):
    with tf.io.gfile.GFile(f'ram://loose/{name}', 'wb') as file:
      file.write(_png(i))
  images = unlabelled.find(
    ['ram://loose/b', 'ram://loose', 'ram://loose/a.png']
  )
  assert images.files == (
    'ram://loose/b',
    'ram://loose/a.png',
    'ram://loose/folder.png/a.png',
  )
  assert _levels(images) == [0, 2, 1]


def test_selection(tmp_path):
  _write(tmp_path, *(f'{i}.png' for i in range(5)))
  images = unlabelled.find([str(tmp_path)])
  chosen = images.select([1, 4])
  assert _levels(chosen) == [1, 4]
  assert chosen.example_id(1) == f'{tmp_path}/4.png'
  assert chosen.num_examples == 2
  assert chosen.num_bytes == images.num_bytes * 2 // 5
  assert _levels(chosen.select([1])) == [4]
  prints = {s.fingerprint for s in (images, chosen, images.select([1, 3]))}
  assert len(prints) == 3
  assert unlabelled.find([str(tmp_path)]).fingerprint == images.fingerprint


def test_a_bmp_with_a_palette_whatever_it_is_called(tmp_path):
  # 1 x 1 pixels, index 1 of two colors, which are blue, green, red, unused.
  header = np.array([66, 0, 62, 40, 1, 1], '<i4').tobytes()
  rest = np.array([0, 4, 0, 0, 2, 0], '<i4').tobytes()
  data = b'BM' + header + b'\1\0\1\0' + rest
  data += bytes([0, 0, 0, 0, 30, 20, 10, 0]) + b'\x80\0\0\0'
  (tmp_path / 'upload').write_bytes(data)
  (image, _), *_ = unlabelled.find([f'{tmp_path}/upload']).records()
  np.testing.assert_array_equal(tf.io.decode_image(image), [[[10, 20, 30]]])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_photo_of_a_turned_camera_is_upright(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  stored = Image.fromarray(np.arange(6, dtype=np.uint8).reshape([2, 3]) * 40)
  stored.save(tmp_path / 'photo.jpg', exif=exif, quality=100)
  upright = Image.fromarray(_stored_pixels(tmp_path / 'photo.jpg'))
  upright.getexif()[0x112] = orientation
  (image, _), *_ = unlabelled.find([f'{tmp_path}/photo.jpg']).records()
  np.testing.assert_array_equal(
    image_ops.decode(image)[..., 0], ImageOps.exif_transpose(upright)
  )


def test_bytes_are_estimated_of_many(tmp_path, monkeypatch):
  monkeypatch.setattr('supcon.data.sources.listing.MAX_MEASURED', 4)
  for i in range(8):
    name = f'{"small" if i < 4 else "large"}_{i}.png'
    (tmp_path / name).write_bytes(b'x' * (10 if i < 4 else 90))
  # Of eight every second one: two of 90 and two of 10.
  assert unlabelled.find([str(tmp_path)]).num_bytes == 8 * (90 + 10) // 2


def test_nothing_to_find(tmp_path):
  _write(tmp_path, 'a.png', 'empty/.b.png', 'empty/sub/c.txt')
  assert _error([]) == (
    'no images are named; give files or folders, as --images=FILE_OR_FOLDER or '
    'as plain arguments.'
  )
  for path in (f'{tmp_path}/none', f'{tmp_path}/a.png/b', ''):
    assert _error([f'{tmp_path}/a.png', path]) == (
      f'--images={path} does not exist; name an image file, or a folder of '
      'them.'
    )
  assert _error([f'{tmp_path}/a.png', f'{tmp_path}/empty']) == (
    f'--images={tmp_path}/empty holds no images (*.jpg, *.jpeg, *.png, *.bmp, '
    '*.gif), nor do the folders in it; name another folder, or the files '
    'themselves, whatever their names end in.'
  )
  assert '--images=two\\nlines does not exist' in _error(['two\nlines'])
