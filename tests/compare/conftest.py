"""The small labelled images of the trainings."""

from retrain.conftest import _one_thread, data, npz, small  # noqa: F401
