"""The parts of the log that both backends share."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from streams.embedded import EmbeddedLog
from streams.log import MANY, Record, lag, partition_of, partitions_of


@given(st.text(max_size=50), st.integers(min_value=1, max_value=256))
def test_a_key_lands_where_kafka_clients_put_it(key: str, partitions: int):
    assert partition_of(key, partitions) == (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


@settings(deadline=None)  # the first example loads numpy
@given(st.lists(st.text(max_size=12) | st.text(min_size=8, max_size=8, alphabet="ab"), min_size=MANY, max_size=300))
def test_many_keys_land_where_each_does(keys: list[str]):
    assert partitions_of(keys, 7) == [partition_of(key, 7) for key in keys]


def test_keys_spread_over_the_partitions():
    counts = [0] * 7
    for number in range(7000):
        counts[partition_of(f"document-{number}", 7)] += 1
    assert min(counts) > 850


def test_lag_counts_what_a_group_has_not_committed(tmp_path):
    log = EmbeddedLog(tmp_path / "log.db")
    assert lag(log, "g", "t") == 0
    log.append("t", [Record(key=str(number), value=b"") for number in range(10)])
    assert lag(log, "g", "t") == 10
    with log.join("g", ["t"]) as reader:
        batch = reader.poll(max_records=4)
        reader.commit({(each.topic, each.partition): each.offset + 1 for each in batch})
    assert lag(log, "g", "t") == 6
    log.close()
