import pytest

from raysearch.cluster import upload
from raysearch.cluster.upload import EXCLUDES, read_upload
from raysearch.errors import ConfigError
from raysearch.job import submit


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "project"
    for name in ("task.py", "data/big.bin", ".git/config", "models/__pycache__/net.pyc", "secret.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    (root / ".gitignore").write_text("secret.txt\n")
    (root / "alias.py").symlink_to(root / "task.py")
    return root


def test_what_travels_is_counted_as_ray_packs_it(folder, tmp_path):
    from zipfile import ZipFile

    from ray._private.runtime_env import packaging

    read = read_upload(folder, EXCLUDES)
    names = {str(path.relative_to(folder)) for path in read.sizes}
    assert names == {"task.py", "data/big.bin", ".gitignore", "alias.py"}
    packaging._zip_files(str(folder), list(EXCLUDES), str(tmp_path / "packed.zip"), include_gitignore=True)
    with ZipFile(tmp_path / "packed.zip") as packed:
        assert {name for name in packed.namelist() if not name.endswith("/")} == names
    assert read.describe() == f"uploads 4 files of {folder}, {read.num_bytes / 2**20:.3g} MiB"
    assert len(read_upload(folder, (*EXCLUDES, "data")).sizes) == 3


def test_too_much_is_refused_with_the_largest_named(folder, monkeypatch):
    monkeypatch.setattr(upload, "MOST_BYTES", 1 << 20)
    (folder / "data/big.bin").write_bytes(b"x" * (2 << 20))
    text = r"2 MiB in 4 files, and 1 MiB .*The largest: data/big.bin \(2 MiB\)"
    with pytest.raises(ConfigError, match=text):
        read_upload(folder, EXCLUDES).check()


def test_keys_in_a_storage_uri_do_not_travel():
    with pytest.raises(ConfigError, match=r"s3://bucket/runs has keys in its URI"):
        submit("task.py:make", "avg_bits<=4", "s3://key:secret@bucket/runs", address="http://127.0.0.1:1")


def test_links_that_lead_out_or_round_are_refused(folder, tmp_path):
    (tmp_path / "private").mkdir()
    (folder / "out").symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match=r"project/out is a link that leads out .* to .*/private"):
        read_upload(folder, EXCLUDES)
    assert len(read_upload(folder, (*EXCLUDES, "out")).sizes) == 4
    (folder / "out").unlink()
    (folder / "data/round").symlink_to(folder)
    with pytest.raises(ConfigError, match=r"data/round is a link to .*/project, in which it lies"):
        read_upload(folder, EXCLUDES)
