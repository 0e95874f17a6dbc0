from mentatlab.sdk.backoff import Backoff


def test_waits_grow_to_a_limit_and_end() -> None:
    backoff = Backoff(give_up_s=60, uniform=lambda _, high: high)
    assert [backoff.wait(0) for _ in range(7)] == [0.25, 0.5, 1, 2, 4, 8, 8]
    assert backoff.wait(60, at_least_s=30) == 30
    assert backoff.wait(60.1) is None
    backoff.progress()
    assert backoff.wait(1000) == 0.25
