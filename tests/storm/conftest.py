"""The storm starts gateways as ``tests/local`` does."""

from tests.local.conftest import launch

__all__ = ["launch"]
