"""Weights in and out: the native Hugging Face checkpoint."""
