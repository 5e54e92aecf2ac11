"""A real RabbitMQ for tests: the only place that knows how a node is kept to itself."""

import os
from functools import cache
from pathlib import Path
from typing import Final, Self

import amqp
import pytest

from tests.processes import Process, until
from tests.services import START_S, Server, free_port, missing

#: Debian's own place; its command on PATH changes to the user rabbitmq, who owns no temp folder.
DEBIAN: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
#: No spinning schedulers beside the tests on the same cores; no port open to other machines.
ERL_ARGS: Final = "-noinput +S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQ(Server):
    """One RabbitMQ node with a port mapper of its own; durable queues survive its restarts."""

    name = "rabbitmq"

    def __init__(self, *config: str) -> None:
        """Set up a node with the lines of rabbitmq.conf given."""
        self.program = rabbitmq_server()
        super().__init__()
        self.config = config
        self._epmd: Process | None = None
        (self.folder / "plugins").write_text("[].")

    @property
    def url(self) -> str:
        """Its address, as Celery wants it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def client(self) -> amqp.Connection:
        """Return an open connection, whose channels confirm what they publish."""
        made = amqp.Connection(
            f"127.0.0.1:{self.port}", connect_timeout=5, read_timeout=20, confirm_publish=True
        )
        made.connect()
        return made

    def messages(self, queue: str) -> int:
        """Count the messages of a queue, with those that a consumer holds: it takes seconds."""
        log = self.folder / "asked.log"
        log.unlink(missing_ok=True)
        names = ["-q", "list_queues", "name", "messages"]
        node = f"RABBITMQ_NODENAME={self.folder.name}@localhost"
        told = [node, f"RABBITMQ_CONF_ENV_FILE={self.folder / 'none'}"]
        argv = ["env", *self._home(), *told, str(self.program.with_name("rabbitmqctl")), *names]
        with Process(argv, log=log) as asked:
            assert asked.wait(START_S) == 0, asked.tail()
        found = dict(line.split("\t") for line in asked.output().splitlines() if "\t" in line)
        return int(found.get(queue, 0))

    def start(self) -> Self:
        """Start port mapper and node."""
        if self.process is None:
            self._start_epmd()
        try:
            return super().start()
        finally:
            if self.process is None:
                self.stop()

    def stop(self) -> None:
        """End both."""
        super().stop()
        if self._epmd is not None:
            self._epmd.close()
            self._epmd = None

    def argv(self) -> list[str]:
        """Return its command line: all it is told comes in its environment."""
        (self.folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in self.config))
        told = {
            "NODENAME": f"{self.folder.name}@localhost",
            "NODE_IP_ADDRESS": "127.0.0.1",
            "NODE_PORT": str(self.port),
            "DIST_PORT": str(free_port()),
            "MNESIA_BASE": str(self.folder / "mnesia"),
            "LOG_BASE": str(self.folder / "log"),
            "LOGS": "-",
            "PID_FILE": str(self.folder / "pid"),
            "CONFIG_FILE": str(self.folder / "rabbitmq"),
            "ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "CONF_ENV_FILE": str(self.folder / "none"),
            # Without it a shell stands between us and the node: a kill would miss the node.
            "ALLOW_INPUT": "1",
            "SERVER_ADDITIONAL_ERL_ARGS": ERL_ARGS,
        }
        settings = [f"RABBITMQ_{name}={value}" for name, value in told.items()]
        return ["env", *self._home(), *settings, str(self.program)]

    def answers(self) -> bool:
        """Tell whether it takes connections, and is ours."""
        try:
            with self.client() as connection:
                # node@host, with the host's full name
                cluster: str = connection.server_properties["cluster_name"]
                return cluster.partition("@")[0] == self.folder.name
        except (OSError, amqp.AMQPError):
            return False

    def _home(self) -> list[str]:
        """Return what node and mapper share; the home holds the cookie by which nodes trust."""
        home = [f"HOME={self.folder}", f"ERL_CRASH_DUMP={self.folder / 'crash.dump'}"]
        return [*home, f"ERL_EPMD_PORT={self._mapper_port}"]

    def _start_epmd(self) -> None:
        """Start the port mapper ourselves: the one a node starts outlives it, for everybody."""
        self._mapper_port = free_port()
        argv = ["epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1"]
        epmd = self._epmd = Process(argv, log=self.folder / "epmd.log")
        names = [*argv[:3], "-names"]
        log = self.folder / "names.log"

        def up() -> bool:
            with Process(names, log=log) as asked:
                return asked.wait() == 0

        until(lambda: epmd.returncode is not None or up(), START_S, "the port mapper")
        if epmd.returncode is not None:
            pytest.fail(f"the port mapper did not start: {epmd.tail()}")


@cache
def rabbitmq_server() -> Path:
    """Return the program that starts a node in the foreground."""
    if not os.access(DEBIAN, os.X_OK):
        missing(f"RabbitMQ is not installed (no {DEBIAN}; Debian: apt-get install rabbitmq-server)")
    return DEBIAN
