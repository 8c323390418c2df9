"""Unlabelled images and their augmented views; knows nothing of NNI."""

from __future__ import annotations

from nni_cssnas.images.sources import load_images
from nni_cssnas.images.views import BatchedViews, LightlyViews, ViewParameters, Views, make_views

__all__ = ["BatchedViews", "LightlyViews", "ViewParameters", "Views", "load_images", "make_views"]
