"""A model's name or a file to checked parameters, without torch."""

from .load import Weights, convert, load_weights, save_safetensors, spec_of, untrained_weights

__all__ = ["Weights", "convert", "load_weights", "save_safetensors", "spec_of", "untrained_weights"]
