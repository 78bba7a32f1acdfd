"""The network: encoder, plain decoder, evidence decoder with MCAM. Importing this package does not import torch."""
