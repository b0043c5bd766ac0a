"""Environments of which a test decides what is installed.

They are for `python -S`, which sees no installed package, with the directory as
PYTHONPATH.
"""

import pathlib

import absl
import packaging


def make(directory, versions, modules=None, requires=()):
  """Makes a directory with packages; absl and packaging are the real ones.

  Args:
    directory: pathlib.Path; must not exist.
    versions: {name of the distribution: version}.
    modules: {name: source} of what can be imported.
    requires: What TensorFlow says that it requires.
  """
  directory.mkdir()
  for name, version in versions.items():
    info = directory / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    lines = [f'Name: {name}', f'Version: {version}']
    if name == 'tensorflow':
      lines += [f'Requires-Dist: {each}' for each in requires]
    (info / 'METADATA').write_text('\n'.join(lines) + '\n')
  for name, source in (modules or {}).items():
    (directory / f'{name}.py').write_text(source)
  for module in (absl, packaging):
    path = pathlib.Path(module.__file__).parent
    (directory / path.name).symlink_to(path)
  return directory
