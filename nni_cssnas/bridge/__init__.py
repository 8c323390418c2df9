"""Where this package meets NNI's runtime, beside :mod:`nni_cssnas.tuners` and the primitives of :mod:`nni_cssnas.spaces`.

NNI 3.0 is archived, so what is wrong with it stays wrong, and is mended here.

| NNI 3.0 | here | shown by |
| --- | --- | --- |
| queues parameters, so that trials that run together swap theirs | `bridge/pairing.py`: each reads its own record | `integration/test_nnictl.py` |
| unpickles and calls what parameters and messages name | `bridge/pairing.py`, `tuners/dispatcher.py`: JSON | `integration/test_security.py` |
| its manager listens to every machine and every web page | `bridge/guard.py` and its `loopback.js` | `bridge/test_guard.py` |
| gives a manager 4 s to answer and a tuner 10 s to connect | 60 s by `bridge/nnictl.py`, 120 s by `loopback.js` | `bridge/test_launch.py` |
| a tuner outlives its manager and throws out a resumed one's | `tuners/dispatcher.py`: it ends within a second | `tuners/test_dispatcher.py` |
| keeps two files open for the output of each trial | `loopback.js` closes them | `bridge/test_guard.py` |
| its tuner looks every three seconds whether to end | `tuners/dispatcher.py`: five times a second | `tuners/test_dispatcher.py` |
| its manager ends five seconds late for idle connections | `loopback.js` closes them | `bridge/test_guard.py` |
| a wrong `experiment.yml` gives a traceback, or starts | `bridge/experiment_file.py`: one line before | `bridge/test_experiment_file.py` |
| tuners minimize unless told, so the worst is looked for | `bridge/experiment_file.py` refuses that | `bridge/test_experiment_file.py` |
| `NasExperiment.resume` hangs and forgets | `bridge/experiment.py` | `integration/test_nas_experiment.py` |
| `export_top_models` gives another architecture | `bridge/experiment.py`, `bridge/pairing.py` | `integration/test_nas_experiment.py` |
| pickles architectures into parameters | `bridge/owned.py`: files that only the user can write | `bridge/test_owned.py` |
| TPE repeats a proposal, and then walks a grid | `tuners/tpe.py` mutates what was seen | `tuners/test_tpe.py` |
| an exception in a tuner leaves an experiment RUNNING | `tuners/base.py`: a random proposal follows | `tuners/test_changed_space.py` |
| Hyperband and BOHB end at the first metric of a trial | `tuners/hyperband.py`, `tuners/bohb.py` | `integration/test_early_stopping.py` |
| Curvefitting compares with trials that have not ended | `tuners/curvefitting.py` | `tuners/test_curvefitting.py` |
| its TPE strategy fails on spaces with cells | `bridge/strategies.py` | `bridge/test_strategies.py` |
| one-shot strategies need labels | `bridge/oneshot.py`: a contrastive loss | `bridge/test_oneshot.py` |
| starts a Python for each trial, which imports for seconds | `bridge/forked.py` forks trials | `integration/test_forked.py` |
| imports Lightning in every trial | `bridge/deferred.py` puts that off | `bridge/test_deferred.py` |
| loads pandas and scipy.stats with itself | `bridge/deferred.py` puts that off | `bridge/test_deferred.py` |
"""
