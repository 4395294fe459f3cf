"""Generated from protos/keyside/v1 by tools/generate_stubs.py; messages and stubs."""
