"""Shared by all tests: quiet TensorFlow and the `slow` mark."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
