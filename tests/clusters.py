"""A Redis Cluster of real servers for tests: how it is made, and how a slot or a master moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Final, Self

import redis

from broker.reservations.addresses import client_of
from tests.services import Valkey, free_port, until

SLOTS: Final = 16384
SETTLE_S: Final = 60.0


class Node(Valkey):
    """A node that knows no other yet."""

    name = "node"

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        # its own choice, 10,000 higher, may be no port at all
        self.bus = free_port()

    @property
    def cluster_options(self) -> list[str]:
        """Return what makes it a node."""
        place = ["--cluster-port", str(self.bus), "--cluster-node-timeout", "2000"]
        more = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
        # a replica that heard little of its master would not follow it
        return [*more, *place, "--cluster-replica-validity-factor", "0"]

    def argv(self) -> list[str]:
        return [*super().argv(), *self.cluster_options]

    def ask(self, *words: object) -> Any:
        """Send one command to this node and no other."""
        with self.client() as client:
            return client.execute_command(*words)

    def id(self) -> str:
        """Return what the cluster calls it."""
        return str(self.ask("CLUSTER", "MYID"))


class Cluster:
    """Three masters that share the slots, and replicas when a test asks for them."""

    def __init__(self, kind: type[Node] = Node, masters: int = 3) -> None:
        self._made = ExitStack()
        self._kind = kind
        self.masters = [self._start() for _ in range(masters)]
        for number, node in enumerate(self.masters):
            first = SLOTS * number // masters
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, SLOTS * (number + 1) // masters - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.masters[1:]:
            self._meet(node)
        until(self._whole, SETTLE_S, "the nodes know one another")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def url(self) -> str:
        """Its address as a user writes it; the first node does not exist."""
        return "redis-cluster://127.0.0.1:1," + ",".join(
            f"127.0.0.1:{n.port}" for n in self.masters
        )

    def new_client(self) -> redis.Redis:
        """Return a client of it, as a process of ours makes one."""
        return client_of(self.url)

    @cached_property
    def client(self) -> redis.Redis:
        """Give a client that is closed with it."""
        client = self.new_client()
        self._made.callback(client.close)
        return client

    def holder(self, key: str) -> Node:
        """Return the master that holds a key."""
        slot = self.masters[0].ask("CLUSTER", "KEYSLOT", key)
        ids = {node.id(): node for node in self.masters}
        for shard in self.masters[0].ask("CLUSTER", "SLOTS"):
            if int(shard[0]) <= slot <= int(shard[1]):
                return ids[str(shard[2][2])]
        raise AssertionError(f"nobody holds {key}")

    def add_replica(self, master: Node) -> Node:
        """Give a master a replica that is in step."""
        replica = self._start()
        self._meet(replica)
        known = master.id()
        until(lambda: known in str(replica.ask("CLUSTER", "NODES")), SETTLE_S, "they have met")
        replica.ask("CLUSTER", "REPLICATE", known)

        def in_step() -> bool:
            with replica.client() as client:
                return client.info("replication").get("master_link_status") == "up"

        until(in_step, SETTLE_S, "the replica is in step")
        return replica

    def move_slot(self, key: str) -> Iterator[str]:
        """Move the slot of a key to another master, in the three steps in which it is moved."""
        source = self.holder(key)
        target = next(node for node in self.masters if node is not source)
        slot = source.ask("CLUSTER", "KEYSLOT", key)
        here, there = source.id(), target.id()
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        yield "begun"
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
        half = len(keys) // 2
        for some in (keys[:half], keys[half:]):
            if some:
                words = ("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *some)
                source.ask(*words)
            yield "on its way"
        # what was written meanwhile went to the new holder
        for node in (target, source, *self.masters):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)
        yield "moved"

    def _start(self) -> Node:
        node = self._kind()
        self._made.callback(node.remove)
        node.start()
        return node

    def _meet(self, node: Node) -> None:
        self.masters[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)

    def _whole(self) -> bool:
        for node in self.masters:
            try:
                shards = node.ask("CLUSTER", "SLOTS")
            except redis.ResponseError:
                return False
            if len(shards) != len(self.masters) or "cluster_state:ok" not in str(
                node.ask("CLUSTER", "INFO")
            ):
                return False
        return True
