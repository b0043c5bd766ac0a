"""Writes the outputs of a model for a data set: --mode=embed."""

from absl import logging

from supcon.compute import devices as devices_lib
from supcon.config import hparams
from supcon.config import run_options
from supcon.data.sources import faults
from supcon.jobs import outputs
from supcon.jobs import run_images
from supcon.jobs import trained_run
from supcon.serving import embeddings


class Embed:
  """--mode=embed: writes the model's outputs for each image of a split."""

  def __init__(self, options: run_options.RunOptions, params: hparams.HParams):
    embeddings.check_output(options.output)
    self._options = options
    self._devices = devices_lib.find(options)
    devices_lib.check_batches(self._devices, options, params)
    self._model = trained_run.find_model(options, params)
    trained_run.check_fits(self._devices, self._model)
    self._dataset = run_images.load_dataset(options, params)
    self._input_fn = params.input_data.input_fn
    self._split = self._dataset.evaluation
    if params.input_data.skip_bad_images:
      bad = faults.find(self._split)
      self._split = faults.without(self._split, bad)

  def announce(self) -> None:
    logging.info(
      'embedding the %d images of split %s of %s with %s',
      self._split.num_examples,
      self._split.name,
      self._input_fn,
      self._model.checkpoint,
    )

  def run(self) -> None:
    """Computes and writes the outputs.

    Raises:
      checkpoints.NotFiniteError: If an output is NaN or infinite.
      faults.BadExampleError: If an image cannot be decoded.
    """
    split, model = self._split, self._model
    dtype = self._devices.encoder_dtype(
      model.params.input_data.preprocessing.allow_mixed_precision
    )
    facts_of_file = {
      'checkpoint': model.checkpoint,
      'fingerprint': model.fingerprint,
      'preprocessing': model.preprocessing,
      'global_step': model.step,
      'dataset': self._input_fn,
      'split': split.name,
      # The data set may have other class names than the model.
      'logit_names': list(model.class_names),
    }
    with (
      faults.naming(split),
      embeddings.open_writer(
        self._options.output,
        split.num_examples,
        self._dataset.class_names,
        facts_of_file,
        embeddings.Origin(model.fingerprint, model.preprocessing),
      ) as writer,
    ):
      position = 0
      for batch in outputs.compute(
        self._options, self._devices, model, self._dataset, split, dtype
      ):
        end = position + len(batch['labels'])
        ids = [split.example_id(i) for i in range(position, end)]
        trained_run.check_outputs(batch, model, ids)
        writer.add({**batch, 'ids': ids})
        position = end
    print(f'Embeddings of {position} images: {self._options.output}')
