"""Layers that tokenizers, processors and decoders are made of."""
