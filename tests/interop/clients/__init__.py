"""Scripts that use a client as its users do. Each is run by the environment that has it, with the endpoints."""
