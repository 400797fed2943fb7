"""Commands beside the experiments: what templates there are, whether a model can answer them, what a log holds."""
