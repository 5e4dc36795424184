"""A request whose body is still being written when it is cancelled leaves nothing half-run behind."""

import gc

import trio

from neuronetz.upstream.ollama import open_upstream


async def test_a_cancelled_write_of_a_body_leaves_nothing_to_the_garbage_collector() -> None:
    # Whatever is left is reported as a warning by the collector, and warnings are errors here.
    async def never_reads(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, never_reads, 0)
        port = listeners[0].socket.getsockname()[1]
        async with open_upstream(
            f"http://127.0.0.1:{port}", connect_timeout_s=2, first_byte_timeout_s=30, chunk_timeout_s=30
        ) as upstream:
            with trio.move_on_after(0.1) as scope:
                async with upstream.stream("/api/chat", b"x" * 32_000_000):
                    pass
            assert scope.cancelled_caught
        gc.collect()
        nursery.cancel_scope.cancel()
