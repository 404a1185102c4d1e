"""What of models survives SIGKILL of the server. `make crash` does the same for longer."""

from pathlib import Path

from tests.campaigns.crash_swaps import campaign


def test_killed_while_models_are_swapped_and_published(tmp_path: Path) -> None:
    expected = campaign(tmp_path, kills=3, seed=2, most_seconds=1.0)
    assert expected.swaps
    assert expected.calls
