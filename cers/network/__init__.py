"""The network: encoder, plain decoder, evidence decoder with MCAM."""
