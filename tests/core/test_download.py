"""Downloads and archives: hashes, offline errors, paths that try to escape."""

import hashlib
import io
import tarfile
import zipfile

import pytest
from contrastive_core.data import fetch, safe_extract
from contrastive_core.errors import InputError


def test_fetches_once_and_checks(tmp_path):
    source, target = tmp_path / "s.bin", tmp_path / "d" / "t.bin"
    source.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert fetch(source.as_uri(), sha256=digest, to=target).read_bytes() == b"content"
    source.unlink()
    assert fetch(source.as_uri(), sha256=digest, to=target) == target


def test_wrong_content_leaves_nothing(tmp_path):
    source, target = tmp_path / "s.bin", tmp_path / "d" / "t.bin"
    source.write_bytes(b"other")
    with pytest.raises(InputError, match="wrong content"):
        fetch(source.as_uri(), sha256="0" * 64, to=target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "file:///does/not/exist", "ftp://a/b"])
def test_out_of_reach_says_how_to_go_on(tmp_path, url):
    with pytest.raises(InputError) as caught:
        fetch(url, sha256="0" * 64, to=tmp_path / "x", timeout=2)
    assert url in str(caught.value)


def tar_with(path, name, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, (3 if kind == tarfile.REGTYPE else 0), "/etc/passwd"
        tar.addfile(info, io.BytesIO(b"abc"))
    return path


def test_unpacks_zip_and_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("d/x.txt", "abc")
    for archive in (tmp_path / "a.zip", tar_with(tmp_path / "a.tar.gz", "d/x.txt")):
        out = tmp_path / archive.name.replace(".", "_")
        assert [path.read_text() for path in safe_extract(archive, out)] == ["abc"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:/x"])
def test_escaping_names_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr(name, "abc")
    for archive in (tmp_path / "a.zip", tar_with(tmp_path / "a.tar.gz", name)):
        with pytest.raises(InputError, match="outside"):
            safe_extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match="link"):
        safe_extract(tar_with(tmp_path / "a.tar.gz", "x", kind), tmp_path / "out")


def test_large_and_truncated_archives_are_refused(tmp_path):
    archive = tar_with(tmp_path / "a.tar.gz", "x")
    with pytest.raises(InputError, match="allowed"):
        safe_extract(archive, tmp_path / "out", limit=2)
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        safe_extract(archive, tmp_path / "out")
