"""An OpenAI-compatible HTTP server for one model."""

from gptfit.serve.model import ServedModel
from gptfit.serve.options import ServerOptions
from gptfit.serve.server import address, listen, serve

__all__ = ["ServedModel", "ServerOptions", "address", "listen", "serve"]
