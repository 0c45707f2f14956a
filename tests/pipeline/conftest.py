"""Fixtures of the pipeline's tests."""

from tests.pipeline.small_run import small_run  # noqa: F401
