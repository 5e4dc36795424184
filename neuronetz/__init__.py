"""neuronetz: a structured-concurrency gateway for language models, in front of Ollama."""

from importlib.metadata import version

__version__ = version("neuronetz")
