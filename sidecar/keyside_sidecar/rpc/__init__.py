"""The gRPC face: servicers, the guard before them, and one table from our errors to statuses."""
