"""The small labelled images of the trainings."""

from training.conftest import _one_thread, data, npz, small  # noqa: F401
