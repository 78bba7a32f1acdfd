"""Training of the network from annotated pictures."""
