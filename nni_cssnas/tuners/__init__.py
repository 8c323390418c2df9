"""Tuners, advisors and an assessor for NNI."""

from nni_cssnas import dispatcher

dispatcher.prepare()
