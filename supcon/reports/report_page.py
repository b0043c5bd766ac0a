"""The page of a report: one HTML file, from a value and its pictures.

It loads nothing, runs nothing, and can be printed. Names that come from data
are escaped.
"""

from collections.abc import Mapping
from typing import Any

from supcon.evaluation import knn
from supcon.reports import html_parts
from supcon.reports import metric_meanings

_Number = html_parts.Number
_percent = metric_meanings.percent

# A table per class shows this many of the worst classes.
_MAX_CLASSES = 40


def make(
  report: Mapping[str, Any],
  figures: Mapping[str, bytes],
  thumbnails: Mapping[tuple[str, int], bytes],
) -> str:
  """Returns the page.

  Args:
    report: The content of report.json, see supcon/jobs/reporting.py.
    figures: {name: SVG}: 'curves', 'map', 'confusion', 'reliability',
      'robustness_0' and so on, as far as they exist.
    thumbnails: {(split, position): PNG} of the mistakes and neighbours; split
      is 'evaluation' or 'index'.
  """
  return _Page(report, figures, thumbnails).text()


class _Page:
  """See `make`."""

  def __init__(self, report, figures, thumbnails):
    self._run = report['run']
    self._report = report
    self._metrics = report['metrics']
    self._figures = figures
    self._thumbnails = thumbnails
    self._names = report['run']['class_names']

  def text(self) -> str:
    sections = (
      ('Map of the embeddings', self._map()),
      ('What was trained', self._trained()),
      ('Training', self._curves()),
      ('Metrics', f'<div class="metrics">{self._all_metrics()}</div>'),
      ('Confusion', self._confusion()),
      ('Calibration', self._calibration()),
      ('Classes', self._classes()),
      ('The most confident mistakes', self._mistakes()),
      ('Nearest neighbours', self._neighbours()),
      ('Robustness', self._robustness()),
      ('Hyper-parameters and versions', self._settings()),
      ('Files', self._files()),
    )
    body = ''.join(
      f'<section><h2>{title}</h2>\n{content}</section>\n'
      for title, content in sections
      if content
    )
    title = html_parts.text(self._run['title'])
    return (
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />\n'
      '<meta name="viewport" content="width=device-width" />\n'
      f'<title>{title}</title>\n<style>{html_parts.STYLE}</style></head>\n<body>\n'
      f'<h1>{title}</h1>\n{self._head()}{body}</body></html>\n'
    )

  def _head(self):
    run = self._run
    done = f'Step {run["step"]}'
    if run['total_steps']:
      done += f' of {run["total_steps"]}'
    figures = ''.join(
      f'<span><b>{form(self._metrics[name])}</b>{title}</span>'
      for name, title, form in (
        ('accuracy/top_1', 'top-1 accuracy', _percent),
        ('knn/k20_t0.07', 'accuracy of 20 nearest neighbours', _percent),
        ('calibration/ece', 'calibration error (ECE)', metric_meanings.number),
      )
      if name in self._metrics
    )
    notes = ''.join(
      f'<p>{html_parts.text(note)}</p>' for note in self._report['notes']
    )
    data = html_parts.text(f'{run["dataset"]} {run["eval_split"]}')
    return (
      f'<p class="faint">{done}, on {run["num_eval_examples"]:,} images of '
      f'{data}. Made {html_parts.text(self._report["made"])}.</p>\n'
      f'<div class="head">{figures}</div>\n'
      + (f'<div class="notes">{notes}</div>\n' if notes else '')
    )

  def _trained(self):
    run = self._run
    rows = [
      ('Data', f'{run["data_name"]} ({run["dataset"]})'),
      (
        'Training images',
        f'{run["num_train_examples"]:,}, {run["train_split"]}',
      ),
      (
        'Evaluation images',
        f'{run["num_eval_examples"]:,}, {run["eval_split"]}',
      ),
      ('Classes', f'{len(self._names):,}'),
      ('Encoder', run['encoder']),
      ('Checkpoint', run['checkpoint']),
    ]
    stages = [
      (
        str(stage['number']),
        stage['epochs'],
        f'{stage["first_step"]} to {stage["last_step"]}',
        stage['optimizer'],
        stage['losses'],
      )
      for stage in run['stages']
    ]
    return html_parts.table((), rows) + html_parts.table(
      ('Stage', _Number('Epochs'), 'Steps', 'Optimizer', 'Losses'), stages
    )

  def _settings(self):
    run = self._run
    changed = [
      (f'--{flag["flag"]}', flag['value'], flag['default'])
      for flag in run['changed']
    ]
    return (
      '<p>The hyper-parameters that differ from the defaults:</p>'
      + html_parts.table(('Flag', 'Value', 'Default'), changed)
      + '<p>This report was made with:</p>'
      + html_parts.table(
        (),
        [
          *run['versions'].items(),
          ('Commit', run['commit'] or 'not a git checkout'),
        ],
      )
    )

  def _curves(self):
    absent = ''
    if not self._report['curves']['train']:
      absent += '<p>There is no record of the training.</p>'
    if not self._report['curves']['eval']:
      absent += (
        '<p>No checkpoint has been evaluated yet, so there are no curves of '
        'evaluations: --mode=eval and --mode=train_then_eval make them.</p>'
      )
    return absent + self._plot(
      'curves', 'Losses, accuracies and learning rates by epoch'
    )

  def _all_metrics(self):
    # Every class is among the C largest logits of C.
    trivial = {
      f'accuracy/top_{k}' for k in (2, 3, 5, 10) if k >= len(self._names)
    }
    rows = [
      (title, _Number(form(self._metrics[name])), meaning)
      for name, title, form, meaning in metric_meanings.MEANINGS
      if self._metrics.get(name) is not None and name not in trivial
    ]
    text = html_parts.table(('Metric', _Number('Value'), 'Meaning'), rows)
    if few := [n for n in (1, 5, 10) if f'few_shot/{n}_shot' in self._metrics]:
      text += (
        '<h3>A few images of each class</h3><p>Accuracy of a linear classifier '
        'that is fitted on the embeddings of so many training images of each '
        'class: mean and standard deviation of three draws.</p>'
      ) + html_parts.table(
        ('Images of a class', _Number('Accuracy'), _Number('Deviation')),
        [
          (
            str(n),
            *(
              _Number(_percent(self._metrics[f'few_shot/{n}_{what}']))
              for what in ('shot', 'shot_deviation')
            ),
          )
          for n in few
        ],
      )
    ks = [k for k in knn.KS if f'knn/{knn.tag(k, 0.07)}' in self._metrics]
    return (
      text + '<h3>Nearest neighbours</h3><p>Accuracy if the k most similar of '
      f'{self._run["num_index_examples"]:,} training images vote exp(s / T) '
      'for their class, where s is the cosine similarity of the embeddings. '
      'Published figures differ in k and T.</p>'
      + html_parts.table(
        ('k', *(_Number(f'T {t:g}') for t in knn.TEMPERATURES)),
        [
          (
            str(k),
            *(
              _Number(_percent(self._metrics[f'knn/{knn.tag(k, t)}']))
              for t in knn.TEMPERATURES
            ),
          )
          for k in ks
        ],
      )
    )

  def _map(self):
    found = self._report['map']
    shares = [100 * share for share in found['explained']]
    text = (
      f'<p>Each point is one of {len(found["labels"]):,} evaluation images; '
      'classes that lie apart are told apart easily. The principal components '
      f'are the two directions of largest variance, {shares[0]:.0f}% and '
      f'{shares[1]:.0f}% of it.'
    )
    if len(found['named']) < len({*found['labels']}):
      text += (
        f' The {len(found["named"])} classes with the most images have a '
        'colour and a name; the others are grey.'
      )
    if found['tsne']:
      text += (
        ' t-SNE keeps neighbours together; its distances between clusters, and '
        'their sizes, mean little.'
      )
    else:
      text += ' With scikit-learn installed, there is a t-SNE map as well.'
    return f'{text}</p>' + self._plot('map', 'Embeddings, coloured by class')

  def _confusion(self):
    if 'classes/confusion' not in self._metrics:
      return ''
    pairs = [
      (self._names[label], self._names[predicted], count)
      for label, predicted, count in self._report['most_confused']
    ]
    shown = self._report['confusion_classes']
    part = ''
    if len(shown) < len(self._names):
      part = (
        f'<p>The {len(shown)} of {len(self._names):,} classes that are '
        'confused most; report.json has all.</p>'
      )
    return (
      '<p>A row has the images of a class, a column those that are taken for '
      f'it.</p>{part}'
      + self._plot('confusion', 'Confusion matrix')
      + (
        html_parts.table(('Is', 'Taken for', _Number('Images')), pairs)
        if pairs
        else '<p>Nothing is confused.</p>'
      )
    )

  def _calibration(self):
    if 'reliability' not in self._figures:
      return ''
    return (
      '<p>Of the images with a confidence of 0.8, 80% should be right: then '
      'the bars end at the diagonal. Below, the number of images in each bin, '
      f'on a logarithmic scale. {html_parts.text(self._report["scaling"])}</p>'
      + self._plot('reliability', 'Accuracy by confidence')
    )

  def _classes(self):
    rows = self._metrics.get('classes/per_class')
    if not rows:
      return ''
    order = range(len(rows))
    text = ''
    if len(rows) > _MAX_CLASSES:
      text = (
        f'<p>The {_MAX_CLASSES} classes of the lowest F1; report.json has all '
        f'{len(rows):,}.</p>'
      )
      order = sorted(order, key=lambda n: (rows[n]['f1'] or 0, n))
      order = order[:_MAX_CLASSES]
    return text + html_parts.table(
      (
        'Class',
        _Number('Images'),
        _Number('Precision'),
        _Number('Recall'),
        _Number('F1'),
      ),
      [
        (
          self._names[n],
          rows[n]['count'],
          *(
            _Number('–' if rows[n][key] is None else _percent(rows[n][key]))
            for key in ('precision', 'recall', 'f1')
          ),
        )
        for n in order
      ],
    )

  def _mistakes(self):
    mistakes = self._metrics.get('classes/mistakes')
    if mistakes is None:
      return ''
    if not mistakes:
      return '<p>There are none.</p>'
    tiles = [
      self._tile(
        'evaluation',
        mistake,
        f'{self._name(mistake["label"])}, taken for '
        f'{self._name(mistake["predicted"])} '
        f'({_percent(mistake["probability"])})<br />'
        f'<span class="faint">{html_parts.text(mistake["id"])}</span>',
      )
      for mistake in mistakes
    ]
    return (
      '<p>Some of them may be labelled wrongly.</p>'
      f'<div class="tiles">{"".join(tiles)}</div>\n'
    )

  def _neighbours(self):
    rows = []
    for query in self._report['neighbours']:
      tiles = [self._tile('evaluation', query, self._caption(query), 'query')]
      tiles += [
        self._tile(
          'index',
          neighbour,
          f'{self._caption(neighbour)}<br />s = {neighbour["cosine"]:.3f}'
          + ('' if neighbour['label'] == query['label'] else ' (other class)'),
        )
        for neighbour in query['neighbours']
      ]
      rows.append(f'<div class="tiles">{"".join(tiles)}</div>\n')
    return (
      '<p>Left, an evaluation image of each class; then the training images '
      'whose embeddings are most similar to its own.</p>' + ''.join(rows)
    )

  def _robustness(self):
    text = ''
    for number, found in enumerate(self._report['robustness']):
      summary = found.get('summary') or {}
      rows = [
        (title, _Number(form(summary[name])), meaning)
        for name, title, form, meaning in metric_meanings.OF_ROBUSTNESS
        if summary.get(name) is not None
      ]
      text += (
        f'<h3>{html_parts.text(found.get("corruptions", ""))}</h3>\n'
        + html_parts.table(('Metric', _Number('Value'), 'Meaning'), rows)
        + '<p>The error under each corruption by its severity:</p>'
        + self._plot(f'robustness_{number}', 'Errors by severity')
      )
    return text

  def _files(self):
    return html_parts.table(
      (),
      [(what, html_parts.link(path)) for what, path in self._report['files']],
    )

  # --- Parts ------------------------------------------------------------------

  def _name(self, label):
    return html_parts.text(self._names[label])

  def _caption(self, example):
    return (
      f'{self._name(example["label"])}<br />'
      f'<span class="faint">{html_parts.text(example["id"])}</span>'
    )

  def _tile(self, split, example, caption, kind=''):
    source = html_parts.data(
      'png', self._thumbnails[split, example['position']]
    )
    return (
      f'<figure class="{kind}"><img src="{source}" alt="" />'
      f'<figcaption>{caption}</figcaption></figure>'
    )

  def _plot(self, name, alt):
    if name not in self._figures:
      return ''
    source = html_parts.data('svg+xml', self._figures[name])
    return f'<img class="plot" src="{source}" alt="{alt}" />\n'
