"""Evaluation: how good masks are, how far their probabilities can be trusted, and whether two results differ."""
