from hypothesis import given
from hypothesis import strategies as st

from mentatlab.gateway.limits import Buckets, TokenBucket


def test_burst_then_rate():
    bucket = TokenBucket(rate=2, burst=3, now=100)
    assert [bucket.take(100) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100) == 0.5
    assert bucket.take(100.5) == 0
    assert bucket.take(100.5) == 0.5


def test_a_clock_that_goes_back_gives_nothing():
    bucket = TokenBucket(rate=1, burst=1, now=100)
    assert bucket.take(100) == 0
    assert bucket.take(50) > 0
    assert bucket.take(100.5) == 0.5


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), max_size=60),
)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, pauses: list[float]):
    bucket, now, taken = TokenBucket(rate, burst, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now) == 0
    assert taken <= burst + now * rate + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 20))
def test_waiting_as_told_is_enough(rate: float, burst: int):
    bucket = TokenBucket(rate, burst, 0.0)
    for _ in range(burst):
        bucket.take(0.0)
    wait = bucket.take(0.0)
    assert wait > 0
    assert bucket.take(wait * (1 + 1e-9)) == 0


def test_buckets_are_apart_and_the_oldest_is_forgotten():
    buckets = Buckets(rate=1, burst=1, most=2)
    assert buckets.take("a", 0) == 0
    assert buckets.take("b", 0) == 0
    assert buckets.take("a", 0) == 1
    assert buckets.take("c", 0) == 0  # pushes b out
    assert buckets.take("a", 0) == 1
    assert buckets.take("b", 0) == 0


def test_rate_0_is_no_limit():
    buckets = Buckets(rate=0, burst=0)
    assert {buckets.take("a", 0) for _ in range(100)} == {0.0}


def test_what_is_owed_is_paid_by_time():
    bucket = TokenBucket(rate=10, burst=20, now=0)
    assert bucket.owe(0, 0) == 0
    assert bucket.owe(20, 0) == 0
    assert bucket.owe(5, 0) == 0.5
    assert bucket.owe(0, 0.25) == 0.25
    assert bucket.owe(0, 0.5) == 0


def test_owing_is_per_name_and_nothing_without_a_rate():
    buckets = Buckets(rate=1, burst=1)
    assert buckets.owe("a", 3, 0) == 2
    assert buckets.owe("b", 1, 0) == 0
    assert Buckets(rate=0, burst=0).owe("a", 10**9, 0) == 0
