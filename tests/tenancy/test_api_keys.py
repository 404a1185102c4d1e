"""The form of API keys, and how they are checked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quintet_client.cli.tenants import new_key

from server.tenancy.api_keys import NO_KEY, ApiKey, id_of, parse_hash

IDS = st.text("abcxyz0189", min_size=4, max_size=32)
SECRETS = st.text("ABCXYZabcxyz0189_-", min_size=43, max_size=43)


def stored(kept: str) -> ApiKey:
    return ApiKey(*parse_hash(kept), math.inf)


def test_keys_that_the_command_makes_are_known() -> None:
    (key_id, key, kept), (_, other, _) = new_key(None), new_key(None)
    assert id_of(key) == key_id
    assert stored(kept["hash"]).matches(key)
    assert not stored(kept["hash"]).matches(other)
    assert key not in str(kept)
    assert key[-43:] not in str(kept)


@given(IDS, SECRETS)
def test_the_id_of_a_key_is_found(key_id: str, secret: str) -> None:
    assert id_of(f"qk_{key_id}_{secret}") == key_id


@given(st.text() | st.builds("qk_{}_{}".format, st.text(max_size=40), st.text(max_size=60)))
def test_what_is_taken_for_a_key_has_its_form(text: str) -> None:
    key_id = id_of(text)
    if key_id is not None:
        assert text == f"qk_{key_id}_{text[-43:]}"
        assert text.isascii()
        assert text.isprintable()


@given(IDS, SECRETS, st.integers(0, 200), st.sampled_from(" \n\0é=.A"))
def test_a_key_with_a_character_too_many_is_none(key_id: str, secret: str, where: int, more: str) -> None:
    key = f"qk_{key_id}_{secret}"
    at = where % (len(key) + 1)
    assert id_of(key[:at] + more + key[at:]) is None


@given(SECRETS, st.integers(0, 49), st.sampled_from("ABab01_-"))
def test_one_character_makes_another_key(secret: str, at: int, other: str) -> None:
    key_id, key, kept = new_key(None)
    changed = key[:at] + other + key[at + 1 :]
    assert stored(kept["hash"]).matches(changed) == (changed == key)
    assert not NO_KEY.matches(f"qk_{key_id}_{secret}")


@given(st.binary(min_size=16, max_size=64), st.binary(min_size=32, max_size=32))
def test_hashes_are_read_as_they_are_written(salt: bytes, digest: bytes) -> None:
    assert parse_hash(f"sha256:{salt.hex()}:{digest.hex()}") == (salt, digest)


@pytest.mark.parametrize(
    "text", ["", "sha256:1", "sha256:ab:" + "0" * 64, "md5:" + "0" * 32 + ":" + "0" * 64, "é" * 100]
)
def test_what_is_no_hash_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="must be sha256:SALT:DIGEST") as caught:
        parse_hash(text)
    assert not text or text not in str(caught.value)
