"""PostgreSQL, Valkey and a mock Ollama, started from wheels: for trying things out, for development and tests."""
