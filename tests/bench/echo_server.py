"""A bare grpcio server that echoes: what the sidecar is measured against.

python echo_server.py threads|aio SOCKET
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

METHOD = "/bench.Echo/Echo"


class _Sync(grpc.GenericRpcHandler):
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        del handler_call_details
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


class _Async(grpc.GenericRpcHandler):
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        del handler_call_details

        async def echo(request: bytes, _context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


def serve_threads(path: str) -> None:
    """Serve on ``grpc.server`` with four threads until SIGTERM."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_Sync(),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    signal.sigwait([signal.SIGTERM])
    server.stop(0).wait()


async def serve_aio(path: str) -> None:
    """Serve on ``grpc.aio`` until SIGTERM."""
    import asyncio

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Async(),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(0)


def main() -> None:
    """Serve as the command line says."""
    kind, path = sys.argv[1:]
    if kind == "threads":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        serve_threads(path)
    else:
        import uvloop

        uvloop.run(serve_aio(path))


if __name__ == "__main__":
    main()
