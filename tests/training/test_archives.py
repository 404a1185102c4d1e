"""Foreign archives are data: what could do harm or is not what it should be is refused."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.training.index_server import wheel
from training.errors import ArchiveRefused
from training.fetch import archives
from training.fetch.archives import read_members
from training.fetch.lock import safe_path


def _read(archive: Path, **wanted: int) -> dict[str, bytes]:
    return {name: b"".join(chunks) for name, chunks in read_members(archive, wanted)}


def _tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"data") -> Path:
    with tarfile.open(path, "w:gz") as file:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            file.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def test_members_of_a_zip_are_read_and_the_others_left(tmp_path: Path) -> None:
    archive = tmp_path / "a.whl"
    archive.write_bytes(wheel({"a": b"1", "b": b"22", "c": b"333"}))
    assert _read(archive, a=1, c=3, absent=9) == {"a": b"1", "c": b"333"}


def test_members_of_a_tar_within_a_tar_are_read(tmp_path: Path) -> None:
    inner = _tar(tmp_path / "inner.tar.gz", tarfile.TarInfo("d/x.txt"), content=b"inner")
    outer = _tar(tmp_path / "outer.tar.gz", tarfile.TarInfo("p/inner.tar.gz"), content=inner.read_bytes())
    name = "p/inner.tar.gz!/d/x.txt"
    assert {key: b"".join(chunks) for key, chunks in read_members(outer, {name: 5})} == {name: b"inner"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:/evil"])
def test_a_zip_with_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.whl"
    archive.write_bytes(wheel({"good": b"1", name: b"2"}).replace(name.replace("\\", "/").encode(), name.encode()))
    with pytest.raises(ArchiveRefused, match="unsafe path"):
        _read(archive, good=1, other=1)


def test_a_tar_with_a_name_that_climbs_out_is_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "a.tar.gz", tarfile.TarInfo("../evil"), tarfile.TarInfo("good"))
    with pytest.raises(ArchiveRefused, match="unsafe path"):
        _read(archive, good=4)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_tar_with_a_link_device_or_folder_for_a_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("weights")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveRefused, match="not a plain file"):
        _read(_tar(tmp_path / "a.tar.gz", member), weights=100)


def test_a_zip_with_a_link_for_a_file_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("weights")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(ArchiveRefused, match="not a plain file"):
        _read(tmp_path / "a.whl", weights=100)


def test_a_member_longer_than_declared_is_refused_while_it_is_read(tmp_path: Path) -> None:
    archive = tmp_path / "a.whl"
    archive.write_bytes(wheel({"bomb": bytes(8 << 20)}))  # a thousandth of that in the zip
    members = read_members(archive, {"bomb": 1 << 20})
    _, chunks = next(members)
    assert len(next(chunks)) == 1 << 20
    with pytest.raises(ArchiveRefused, match="longer than"):
        next(chunks)


def test_a_tar_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "TAR_LIMIT", 1 << 20)
    archive = _tar(tmp_path / "a.tar.gz", tarfile.TarInfo("bomb"), tarfile.TarInfo("weights"), content=bytes(4 << 20))
    with pytest.raises(ArchiveRefused, match="more than its limit"):
        _read(archive, weights=100)


def test_a_pointer_of_git_lfs_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.whl"
    archive.write_bytes(wheel({"weights": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}))
    with pytest.raises(ArchiveRefused, match="Git LFS"):
        _read(archive, weights=1000)


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_a_broken_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00 not an archive")
    with pytest.raises(ArchiveRefused, match="is damaged"):
        _read(tmp_path / name, a=1)


@given(st.text(max_size=40))
@example(".")
def test_a_safe_path_does_not_leave_its_folder(path: str) -> None:
    root = Path("/root/folder")
    try:
        safe_path(path)
    except ValueError:
        return
    joined = Path(str(root / path))
    assert joined == root or root in joined.parents  # "." is the distribution itself
    assert ".." not in joined.parts
