"""Front doors: messages to commands, results to messages. The only rooms that know protos."""
