"""Who is calling: what the kernel says of a connection, and what follows from it (I1 to I4).

``credential`` asks the kernel about the process at the other end, with ``pidfd`` and ``login``;
``accounts`` asks the host's name service which account and groups a uid has, with ``libc`` and
``switch``; ``membership`` caches that within its bounds. ``listener``, ``relay`` and ``tickets``
carry the connection.

Nothing here imports gRPC.
"""
