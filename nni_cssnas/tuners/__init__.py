"""Tuners, advisors and an assessor for NNI."""

from nni_cssnas.tuners import dispatcher

dispatcher.prepare()
