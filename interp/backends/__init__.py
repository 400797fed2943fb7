"""Backends: what runs a batch of tokens through a model."""
