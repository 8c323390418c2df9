"""Search without trials of NNI's: random, or TPE on what was scored so far."""
