"""What a Redis Cluster asks of us: a client that connects late, and questions put to one node.

The hash tag puts all keys of a queue on one node; what belongs to no queue has a node of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.commands.core import Script
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ClusterError, RedisClusterException
from redis.retry import Retry

#: nobody holds the slot, or it is on its way from one node to another
NOT_WHOLE: Final = (RedisClusterException, ClusterError)


class _Connected(RedisCluster):
    """Speaks of a cluster that is not whole as of a server that is away."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except NOT_WHOLE as error:
            raise redis.ConnectionError(f"the cluster is not whole: {error}") from error


class Cluster:
    """A cluster as one client; it looks for its nodes at the first call, as a single one would.

    It follows a slot that has moved, which the node refused before it did anything, and repeats
    nothing else.
    """

    def __init__(self, nodes: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        """Begin with any of these nodes; ``options`` are those of each node's connections."""
        self.nodes: Final = tuple(nodes)
        self.options: Final = options
        self._client: RedisCluster | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Give whatever the client of the whole cluster has."""
        if name.startswith("__"):  # of Python itself, as when one is copied
            raise AttributeError(name)
        return getattr(self._connected(), name)

    def register_script(self, script: str) -> Script:
        """Make a script; its digest is told from its bytes, for which nobody must be asked."""
        made = Script(self, script.encode())  # type: ignore[arg-type]
        made.script = script
        return made

    def close(self) -> None:
        """Drop all connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _connected(self) -> RedisCluster:
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
        return self._client

    def _connect(self) -> RedisCluster:
        nodes = [
            ClusterNode(host, port)  # type: ignore[no-untyped-call]
            for host, port in self.nodes
        ]
        try:
            return _Connected(
                startup_nodes=nodes,
                retry=Retry(NoBackoff(), 0),
                # a queue needs the slot it lies in, and no other
                require_full_coverage=False,
                **self.options,
            )
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error


def holder_of(client: Any, key: str) -> dict[str, Any]:
    """Return the option that puts a question without a key to the node that holds one.

    Raises:
        ConnectionError: nobody holds it just now.
    """
    if not isinstance(client, Cluster):
        return {}
    try:
        return {"target_nodes": client.get_node_from_key(key)}
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error


def nodes_of(client: Any) -> dict[str, Any]:
    """Return a client of each node by its address, masters and replicas; of one server itself."""
    if not isinstance(client, Cluster):
        return {"": client}
    return {node.name: client.get_redis_connection(node) for node in client.get_nodes()}


def uncovered(client: Any) -> int:
    """Count the slots that no node holds."""
    if not isinstance(client, Cluster):
        return 0
    return int(REDIS_CLUSTER_HASH_SLOTS) - len(client.nodes_manager.slots_cache)
