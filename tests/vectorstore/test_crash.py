"""What survives SIGKILL. `make crash` does the same for longer."""

from pathlib import Path

from tests.campaigns.crash import campaign


def test_killed_at_any_moment(tmp_path: Path) -> None:
    expected = campaign(tmp_path, kills=6, seed=1, most_seconds=0.6)
    assert expected.number > 6
