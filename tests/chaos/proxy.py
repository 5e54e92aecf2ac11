"""A TCP proxy on loopback that resets, stalls, refuses, and drops replies on order."""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Final, Self

CHUNK: Final = 64 * 1024


class Proxy:
    """Forwards one port to another; its orders may come from any thread."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._ready = threading.Event()
        self._flows: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._drops = 0
        self._delay_s = 0.0
        #: Connections cut, and replies dropped, that were there to be.
        self.struck = 0
        self.port = 0

    def start(self) -> Self:
        """Listen."""
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        """Listen no more, and cut what is open."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def reset(self) -> None:
        """Cut every connection, as a reset does."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def stall(self, *, on: bool) -> None:
        """Hold everything back, or let it go on."""
        self._loop.call_soon_threadsafe(self._going.clear if on else self._going.set)

    def slow(self, delay_s: float) -> None:
        """Let everything arrive so much later; 0 is as fast as before."""
        self._delay_s = delay_s

    def refuse(self, *, on: bool) -> None:
        """Take no new connection, and cut those there are."""
        self._refusing = on
        if on:
            self.reset()

    def drop_replies(self, count: int) -> None:
        """Swallow the next replies, each with its connection: the request has been carried out."""
        self._drops = count

    def _cut_all(self) -> None:
        for writer in tuple(self._flows):
            self.struck += 1
            writer.transport.abort()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped, self._going = asyncio.Event(), asyncio.Event()
        self._going.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        self._refusing = True
        self._going.set()
        while self._serving:
            self._cut_all()
            await asyncio.wait(self._serving, timeout=0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            if self._refusing:
                raise ConnectionRefusedError
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            if back.get_extra_info("sockname")[1] == self._target:
                # nobody listens, and the kernel has connected the socket to itself
                back.transport.abort()
                raise ConnectionRefusedError
        except OSError:
            writer.transport.abort()
            return
        for one in (writer, back):
            plug: socket.socket = one.get_extra_info("socket")
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._flows.add(one)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer, replies=True))
        finally:
            for one in (writer, back):
                self._flows.discard(one)
                one.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await self._going.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if replies and self._drops > 0:
                    self._drops -= 1
                    self.struck += 1
                    break
                sink.write(data)
                await sink.drain()
        # one side has ended, so the other speaks to nobody
        sink.close()
