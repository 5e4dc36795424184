"""The OpenAPI document of all that the gateway answers."""
