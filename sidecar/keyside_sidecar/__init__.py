"""The Keyside daemon. Nothing here is a public interface: use ``keyside`` or the protos."""
