"""Kafka's default partitioner: which partition a key belongs to, in either log."""

from __future__ import annotations


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 hash of a key (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned integer."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    body = len(data) & ~3
    for i in range(0, body, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        h = h * m & mask ^ (k ^ k >> 24) * m & mask
    if tail := data[body:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key under Kafka's default partitioner."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions if partitions > 1 else 0
