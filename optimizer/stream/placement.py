"""Whether a log's records stand where their keys belong: a changed partition count is seen before any state exists."""

from __future__ import annotations

from typing import Final

from optimizer.errors import ConfigError
from optimizer.stream.log import EventLog, TopicPartition
from optimizer.stream.partitioner import partition_of

SAMPLE_RECORDS: Final = 200
FEWEST: Final = 3  # misplaced records: one or two may be somebody's mistake, and are no reason to stop
LEAST_SHARE: Final = 0.25  # of the sample; a count that was raised misplaces half of the old keys or more


def check_placement(log: EventLog, partition: int) -> None:
    """Look at a partition's first decisions and events. Raises ConfigError where their keys belong elsewhere: what is
    written from now on would not meet what was written before."""
    count = log.partitions("decisions")
    if count == 1:
        return
    places = [TopicPartition(topic, partition) for topic in ("decisions", "events")]
    reader = log.reader({place: log.start(place) for place in places})
    try:
        records = [record for record in reader.poll(SAMPLE_RECORDS) if record.key is not None]
    finally:
        reader.close()
    astray = [record for record in records if partition_of(record.key or b"", count) != partition]
    if len(astray) < max(FEWEST, LEAST_SHARE * len(records)):
        return
    first, key = astray[0], astray[0].key or b""
    raise ConfigError(
        f"partitions: {len(astray)} of the first {len(records)} keys in partition {partition} do not belong there "
        f"({first.topic} at offset {first.offset}: {key[:64]!r} belongs to {partition_of(key, count)} of {count}): the "
        "count was changed after they were written, or a producer does not use Kafka's murmur2 partitioner, so records "
        "of one decision no longer meet; start a new log under another prefix, and copy the records over"
    )
