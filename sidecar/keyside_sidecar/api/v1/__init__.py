"""keyside.v1: a module a service, each with its rows."""
