"""Counting bytes in programs."""

import numpy as np
import pytest
import tensorflow as tf

from supcon.config import enums
from tests.tpu import cases
from tests.tpu import offline
from tests.tpu import program
from tests.tpu import traffic

tf1 = tf.compat.v1

# A core of four: in each step of a loop a batch norm, a gather of features and
# classes, and the gradients of two variables, one of which gets none. The first
# of them is summed by pairs of cores only.
_PROGRAM = """
module {
  func.func @main(%arg0: tensor<16xf32>, %arg1: tensor<i32>)
      -> (tensor<16xf32>, tensor<i32>) {
    %zeros = mhlo.constant dense<0.0> : tensor<5xf32>
    %zero = mhlo.constant dense<0.0> : tensor<f32>
    %labels = mhlo.constant dense<1> : tensor<8xi32>
    %end = mhlo.constant dense<3> : tensor<i32>
    %0:2 = mhlo.while(%x = %arg0, %i = %arg1) : tensor<16xf32>, tensor<i32>
    cond {
      %1 = mhlo.compare LT, %i, %end
          : (tensor<i32>, tensor<i32>) -> tensor<i1>
      mhlo.return %1 : tensor<i1>
    } do {
      %1 = "mhlo.cross-replica-sum"(%x)
          {replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}
          : (tensor<16xf32>) -> tensor<16xf32>
      %2 = mhlo.reshape %1 : (tensor<16xf32>) -> tensor<8x2xf32>
      %3 = "mhlo.all_to_all"(%2) {
          concat_dimension = 0 : i64, split_count = 4 : i64,
          split_dimension = 0 : i64,
          replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}
          : (tensor<8x2xf32>) -> tensor<8x2xf32>
      %4 = "mhlo.all_to_all"(%labels) {
          concat_dimension = 0 : i64, split_count = 4 : i64,
          split_dimension = 0 : i64,
          replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}
          : (tensor<8xi32>) -> tensor<8xi32>
      %anchors = "mhlo.slice"(%2) {
          start_indices = dense<0> : tensor<2xi64>,
          limit_indices = dense<2> : tensor<2xi64>,
          strides = dense<1> : tensor<2xi64>}
          : (tensor<8x2xf32>) -> tensor<2x2xf32>
      %5 = "mhlo.dot_general"(%anchors, %3) {
          dot_dimension_numbers = #mhlo.dot<
            lhs_contracting_dimensions = [1],
            rhs_contracting_dimensions = [1]>,
          precision_config = [#mhlo<precision HIGHEST>,
                              #mhlo<precision HIGHEST>]}
          : (tensor<2x2xf32>, tensor<8x2xf32>) -> tensor<2x8xf32>
      %6 = mhlo.multiply %5, %5 : tensor<2x8xf32>
      %7 = "mhlo.dot_general"(%6, %3) {
          dot_dimension_numbers = #mhlo.dot<
            lhs_contracting_dimensions = [1],
            rhs_contracting_dimensions = [0]>,
          precision_config = [#mhlo<precision HIGHEST>,
                              #mhlo<precision HIGHEST>]}
          : (tensor<2x8xf32>, tensor<8x2xf32>) -> tensor<2x2xf32>
      %8 = mhlo.reshape %7 : (tensor<2x2xf32>) -> tensor<4xf32>
      %9 = "mhlo.all_reduce"(%8) ({
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %sum = mhlo.add %a, %b : tensor<f32>
        mhlo.return %sum : tensor<f32>
      }) {replica_groups = dense<[[0, 1], [2, 3]]> : tensor<2x2xi64>}
          : (tensor<4xf32>) -> tensor<4xf32>
      %10 = "mhlo.cross-replica-sum"(%zeros)
          {replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}
          : (tensor<5xf32>) -> tensor<5xf32>
      %11 = "mhlo.pad"(%9, %zero) {
          edge_padding_high = dense<12> : tensor<1xi64>,
          edge_padding_low = dense<0> : tensor<1xi64>,
          interior_padding = dense<0> : tensor<1xi64>}
          : (tensor<4xf32>, tensor<f32>) -> tensor<16xf32>
      %12 = mhlo.add %i, %i : tensor<i32>
      mhlo.return %11, %12 : tensor<16xf32>, tensor<i32>
    }
    return %0#0, %0#1 : tensor<16xf32>, tensor<i32>
  }
}
"""


def test_collectives():
  found = traffic.collectives(_PROGRAM)
  purposes = traffic.Purpose
  assert [(each.purpose, each.size, each.group_size) for each in found] == [
    (purposes.BATCH_NORM, 16 * 4, 4),
    (purposes.GATHER, 8 * 2 * 4, 4),
    (purposes.GATHER, 8 * 4, 4),
    (purposes.GRADIENTS, 4 * 4, 2),
    (purposes.CONSTANTS, 5 * 4, 4),
  ]
  assert [each.bytes_sent for each in found] == [
    96,  # 2 * 3/4 * 64
    48,  # 3/4 * 64
    24,  # 3/4 * 32
    16,  # 2 * 1/2 * 16
    0,
  ]


def test_loss_memory():
  memory = traffic.loss_memory(_PROGRAM)
  assert (memory.anchors, memory.contrasts) == (2, 8)
  assert memory.dtype == np.float32
  assert memory.matrix == 2 * 8 * 4
  assert memory.num_matrices == 2  # %5 and %6.
  assert memory.gathered == 2 * (8 * 2 * 4)  # %2 and %3; labels do not count.
  assert memory.total == 2 * 64 + 128


def test_a_program_without_similarities():
  assert traffic.loss_memory(_PROGRAM.replace('HIGHEST', 'DEFAULT')) is None


def test_a_collective_of_unknown_cost():
  module = """
  module {
    func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
      %0 = "mhlo.collective_permute"(%x)
          {source_target_pairs = dense<[[0, 1]]> : tensor<1x2xi64>}
          : (tensor<4xf32>) -> tensor<4xf32>
      return %0 : tensor<4xf32>
    }
  }
  """
  with pytest.raises(ValueError, match='collective_permute'):
    traffic.collectives(module)


def test_a_whole_training_step():
  num_cores = 8
  graph = offline.training_graph(
    cases.function(cases.params(enums.Optimizer.MOMENTUM), 1, use_tpu=True),
    cases.input_fn(tf.float32, with_weights=False),
    num_cores,
    cases.BATCH_SIZE,
    steps=1,
  )
  mlir = program.lower(graph)
  sizes = {purpose: 0 for purpose in traffic.Purpose}
  for each in traffic.collectives(mlir):
    assert each.group_size == num_cores
    sizes[each.purpose] += each.size
  with graph.as_default():
    variables = tf1.trainable_variables()
  gammas = [v for v in variables if v.op.name.endswith('/gamma')]
  assert len(gammas) >= 2
  assert sizes == {
    # Features there and back, labels.
    traffic.Purpose.GATHER: cases.BATCH_SIZE * (2 * (2 * 8 * 4) + 4),
    # Two moments of each channel, and two sums on the way back.
    traffic.Purpose.BATCH_NORM: sum(2 * 2 * 4 * v.shape[0] for v in gammas),
    # And what is reported: two accuracies, four losses, and whether the loss,
    # each gradient and each batch statistic is finite.
    traffic.Purpose.GRADIENTS: 4
    * (
      sum(v.shape.num_elements() for v in variables)
      + (2 + 4)
      + (1 + len(variables) + 2 * len(gammas))
    ),
    traffic.Purpose.CONSTANTS: 0,
  }
  memory = traffic.loss_memory(mlir)
  local = cases.BATCH_SIZE // num_cores
  assert (memory.anchors, memory.contrasts) == (
    2 * local,
    2 * cases.BATCH_SIZE,
  )
  assert memory.num_matrices == 2
