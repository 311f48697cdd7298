"""gptfit side by side with its peers: the same model, data, batch and precision, in one run."""
