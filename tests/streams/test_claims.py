from mentatlab.streams.claims import Claims, LocalClaims


async def test_a_name_is_claimed_once_until_its_time_has_passed():
    now = [100.0]
    claims: Claims = LocalClaims(lambda: now[0])
    assert await claims.claim("a", 60)
    assert not await claims.claim("a", 60)
    assert await claims.claim("b", 10)
    now[0] = 159.9
    assert not await claims.claim("a", 60)
    assert await claims.claim("b", 10)
    now[0] = 160.0
    assert await claims.claim("a", 60)
    assert not await claims.claim("a", 60)


async def test_what_has_passed_is_forgotten_behind_a_longer_claim_too():
    now = [0.0]
    claims = LocalClaims(lambda: now[0])
    assert await claims.claim("long", 100)
    assert await claims.claim("short", 1)
    now[0] = 2.0
    assert await claims.claim("short", 1)
    now[0] = 200.0
    assert await claims.claim("other", 1)
    assert await claims.claim("long", 1)
    assert not await claims.claim("other", 1)
