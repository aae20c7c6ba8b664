"""Models: the TRM decoder, the encoders that condition it, and the bundles that ship its weights."""
