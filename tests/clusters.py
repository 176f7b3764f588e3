"""Private Redis Clusters, a primary with its replica and sentinels, and certificates for TLS."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trustme
from servers import LOOPBACK, Config, Running, Server, pairs, start, wait_until

SLOTS, PRIMARIES = 16384, 3


@dataclass
class Cluster(Running):
    """A Redis Cluster on loopback ports."""

    nodes: list[Server]  #: the first three started as primaries, the rest as replicas

    @property
    def url(self) -> str:
        """The address of one node; a cluster client finds the others."""
        return self.nodes[0].tcp_url

    def close_clients(self) -> None:
        for node in self.nodes:
            node.close_clients()

    def primary_of(self, key: str | bytes) -> Server:
        """The node that serves `key` now."""
        slot = self.nodes[0].ask("CLUSTER", "KEYSLOT", key)
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node serves slot {slot}")

    def move_slot(self, key: str, *, atomically: bool, pause_sec: float = 0.0) -> None:
        """Hands the slot of `key` to the next primary while clients are at work.

        `atomically`: by Valkey 9's own CLUSTER MIGRATESLOTS; else as `redis-cli --cluster reshard`
        does, so that it is half moved for three pauses: before, amid and after its keys move.
        """
        source = self.primary_of(key)
        primaries = [node for node in self.nodes if node.ask("ROLE")[0] == b"master"]
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        slot = source.ask("CLUSTER", "KEYSLOT", key)
        old, new = (node.ask("CLUSTER", "MYID") for node in (source, target))
        if atomically:
            source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", new)
        else:
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new)
            time.sleep(pause_sec)
            for one in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.ask("MIGRATE", LOOPBACK, str(target.port), one, 0, 5000)
                time.sleep(pause_sec / 4)
            time.sleep(pause_sec)
            for node in (target, source, *primaries):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", new)
        wait_until("the slot is there", lambda: self.primary_of(key) is target)

    def reset(self) -> None:
        """Removes all keys; brings back nodes that a test ended."""
        for node in self.nodes:
            if not node.running:
                node.start()
        self.wait()
        for node in self.nodes:
            if node.ask("ROLE")[0] == b"master":
                node.ask("FLUSHALL")
        self.close_clients()

    def stop(self) -> None:
        self.close_clients()
        for node in self.nodes:
            node.kill()  # nothing to keep, and an orderly stop takes longer

    def wait(self) -> None:
        """Until every node that runs says that all is well."""
        nodes, ok = [node for node in self.nodes if node.running], b"cluster_state:ok"
        wait_until("it is well", lambda: all(ok in one.ask("CLUSTER", "INFO") for one in nodes))


def start_cluster(kind: str, *, replicas: int = 3, config: Config | None = None) -> Cluster:
    """Forms a real cluster: slots shared evenly by three primaries; replica i follows primary i."""
    settings: Config = {
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        # short enough for a failover within a test, long enough for a busy machine
        "cluster-node-timeout": "3000",
        **(config or {}),
    }
    with ExitStack() as started:  # stopped where the rest fails
        cluster = Cluster([
            started.enter_context(start(kind, port=True, config=settings))
            for _ in range(PRIMARIES + replicas)
        ])  # fmt: skip
        _form(cluster)
        started.pop_all()
    return cluster


def _form(cluster: Cluster) -> None:
    nodes = cluster.nodes
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for number in range(PRIMARIES):
        slots = range(SLOTS * number // PRIMARIES, SLOTS * (number + 1) // PRIMARIES)
        # slot by slot: ADDSLOTSRANGE is only known from 7.0 on
        nodes[number].ask("CLUSTER", "ADDSLOTS", *slots)
    for node in nodes[1:]:
        nodes[0].ask("CLUSTER", "MEET", LOOPBACK, str(node.port))

    def all_say(words: bytes, times: int, *but: bytes) -> bool:
        told = [node.ask("CLUSTER", "NODES") for node in nodes]
        return all(len(re.findall(words, one)) == times and not any(b in one for b in but)
                   for one in told)  # fmt: skip

    wait_until("every node knows all", lambda: all_say(rb"\n", len(nodes), b"handshake"))
    replicas = nodes[PRIMARIES:]
    for primary, replica in zip(nodes, replicas, strict=False):
        replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID"))
    wait_until("every replica follows its primary", lambda: all(map(_follows, replicas)))
    cluster.wait()
    # clients route by what they are told: wait until every node tells of every node
    wait_until("all nodes tell of all", lambda: all_say(rb"\bslave\b", len(replicas)))


def _follows(node: Server) -> bool:
    role = node.ask("ROLE")
    return bool(role[0] == b"slave" and role[3] == b"connected")


@dataclass
class SentinelSetup(Running):
    """A primary, its replica and the sentinels that watch them."""

    name: str  #: the service name that the sentinels know the primary by
    primary: Server  #: as started; after a failover ask the sentinels
    replica: Server
    sentinels: list[Server]

    @property
    def url(self) -> str:
        """As `--redis-url` names them all."""
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    def told(self) -> dict[bytes, bytes]:
        """What the first sentinel says of the primary, such as its `port` and `flags`."""
        return pairs(self.sentinels[0].ask("SENTINEL", "MASTER", self.name))

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.primary):
            server.kill()


def start_sentinel(kind: str, *, sentinels: int = 1) -> SentinelSetup:
    """A primary, a replica in step with it, and sentinels that agree on both.

    A primary that is gone for one second is failed over.
    """
    name = "orders"
    with ExitStack() as started:

        def add(config: Config, *arguments: str) -> Server:
            one = start(kind, port=True, config=config, arguments=arguments)
            return started.enter_context(one)

        primary = add({})
        replica = add({"replicaof": f"{LOOPBACK} {primary.port}"})
        wait_until("the replica follows", lambda: _follows(replica))
        watch = {
            "sentinel": [
                f"monitor {name} {LOOPBACK} {primary.port} {sentinels // 2 + 1}",
                f"down-after-milliseconds {name} 1000",
                f"failover-timeout {name} 5000",
            ]
        }
        watchers = [add(watch, "--sentinel") for _ in range(sentinels)]
        wait_until(
            "the sentinels know the replica and each other",
            lambda: all(_sees(watcher, name, sentinels - 1) for watcher in watchers),
        )
        started.pop_all()
    return SentinelSetup(name, primary, replica, watchers)


def _sees(sentinel: Server, name: str, fellows: int) -> bool:
    facts = pairs(sentinel.ask("SENTINEL", "MASTER", name))
    return facts[b"num-slaves"] == b"1" and facts[b"num-other-sentinels"] == b"%d" % fellows


def make_certificates(folder: Path) -> dict[str, str]:
    """Writes ca.crt, and server and client .crt and .key signed by it; the lines of a server's
    configuration that has TLS on its port (of the three kinds only the system's Redis can)."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for of in ("server", "client"):
        made = authority.issue_cert("localhost", LOOPBACK)
        made.private_key_pem.write_to_path(str(folder / f"{of}.key"))
        made.cert_chain_pems[0].write_to_path(str(folder / f"{of}.crt"))
    files = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}
    named = {f"tls-{what}-file": str(folder / name) for what, name in files.items()}
    return {"port": "0", "tls-port": "{port}", **named}
