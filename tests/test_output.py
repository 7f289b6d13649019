"""Results on disk: whole or not at all, where they were asked for, and nothing else is touched."""

import errno
import json
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from posthoc_metric.errors import OutputError
from posthoc_metric.output import check_file, check_folder, jsonable, staged_folder, to_json, write_file


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


class TestFolders:
    def test_a_folder_appears_whole(self, tmp_path):
        with staged_folder(tmp_path / "a" / "b") as draft:
            (draft / "file").write_text("x")
            assert not (tmp_path / "a" / "b").exists()
        assert (tmp_path / "a" / "b" / "file").read_text() == "x"
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]

    def test_a_file_in_the_way_is_named(self, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(OutputError, match="is a file"), staged_folder(tmp_path / "out"):
            pass
        with pytest.raises(OutputError, match="cannot write to `out`"):
            check_folder(tmp_path / "out" / "below")
        assert (tmp_path / "out").read_text() == "mine"

    def test_checking_a_folder_leaves_nothing(self, tmp_path):
        check_folder(tmp_path / "a" / "b")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_one_clear_error(self, tmp_path):
        with pytest.raises(OutputError, match="No space left"), staged_folder(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.EACCES])
    def test_a_folder_that_is_there_needs_nothing_of_its_parent(self, tmp_path, monkeypatch, code):
        """It may be a device of its own, as where a container is given one folder to write to."""
        out, make, move = tmp_path / "out", tempfile.mkdtemp, os.replace
        out.mkdir()

        def inside(path):
            if out not in Path(path).parents:
                raise OSError(code, os.strerror(code))

        def mkdtemp(dir, **options):
            inside(Path(dir) / "draft")
            return make(dir=dir, **options)

        monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
        monkeypatch.setattr(os, "replace", lambda source, place: (inside(source), move(source, place)))
        check_folder(out)
        assert files(out) == {}
        with staged_folder(out) as draft:
            (draft / "file").write_text("x")
        assert files(out) == {"file": "x"} and [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
    def test_a_folder_that_is_there_is_as_it_was_after_an_error(self, tmp_path, error):
        (tmp_path / "file").write_text("old")
        with pytest.raises((KeyboardInterrupt, OutputError)), staged_folder(tmp_path) as draft:
            (draft / "file").write_text("new")
            raise error
        assert files(tmp_path) == {"file": "old"}

    def test_a_folder_in_the_place_of_a_file_is_found_before_the_first_is_moved(self, tmp_path):
        (tmp_path / "b").mkdir()
        with pytest.raises(OutputError, match="cannot write '.*b': Is a directory"), staged_folder(tmp_path) as draft:
            (draft / "a").write_text("new")
            (draft / "b").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["b"] and not list((tmp_path / "b").iterdir())

    def test_files_that_were_written_before_another_could_not_be_are_named(self, tmp_path, monkeypatch):
        move = Path.replace

        def replace(source, place):
            if place.name == "b":
                raise OSError(errno.EIO, "Input/output error")
            return move(source, place)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(OutputError, match="b': Input/output error. Of the same.* only a came") as caught:  # noqa: SIM117
            with staged_folder(tmp_path) as draft:
                for name in "abc":
                    (draft / name).write_text("new")
        assert "nothing" not in str(caught.value) and files(tmp_path) == {"a": "new"}

    def test_a_link_is_written_through(self, tmp_path):
        (tmp_path / "file").symlink_to(tmp_path / "elsewhere" / "real")
        (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
        for content in ("first", "second"):  # the folder is made by the first, and is there for the second
            with staged_folder(tmp_path / "out") as draft:
                (draft / "real").write_text(content)
            assert files(tmp_path / "elsewhere") == {"real": content}
        with staged_folder(tmp_path) as draft:
            (draft / "file").write_text("third")
        assert (tmp_path / "file").is_symlink() and files(tmp_path / "elsewhere") == {"real": "third"}

    def test_the_longest_name_will_do_and_a_longer_one_is_refused_at_once(self, tmp_path):
        longest = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
        with staged_folder(tmp_path / "new" / longest) as draft:
            (draft / "file").write_text("x")
        assert files(tmp_path / "new" / longest) == {"file": "x"}
        with pytest.raises(OutputError, match="File name too long.*nothing was left behind"):
            check_folder(tmp_path / "other" / (longest + "n"))
        with pytest.raises(OutputError, match="File name too long.*nothing was left behind"):
            check_folder(tmp_path / "other" / (longest + "n") / "below")
        assert [path.name for path in tmp_path.iterdir()] == ["new"]


class TestFiles:
    def test_a_single_file_is_replaced_whole(self, tmp_path):
        write_file(tmp_path / "x", b"new")
        assert (tmp_path / "x").read_bytes() == b"new"
        with pytest.raises(OutputError, match="Check that the folder"):
            write_file(tmp_path / "missing" / "x", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_the_longest_name_will_do_and_a_longer_one_is_refused_at_once(self, tmp_path):
        longest = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
        check_file(tmp_path / longest)
        write_file(tmp_path / longest, b"x")
        assert files(tmp_path) == {longest: "x"}
        with pytest.raises(OutputError, match="File name too long"):
            check_file(tmp_path / (longest + "n"))

    def test_a_link_is_written_through(self, tmp_path):
        (tmp_path / "real").write_text("old")
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "dangling").symlink_to("new")
        for name in ("link", "dangling"):
            check_file(tmp_path / name)
            write_file(tmp_path / name, name.encode())
            assert (tmp_path / name).is_symlink()
        assert files(tmp_path) == {"real": "link", "link": "link", "new": "dangling", "dangling": "dangling"}

    def test_a_file_that_is_mounted_by_itself_is_written_into(self, tmp_path, monkeypatch):
        def busy(source, target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

        (tmp_path / "x").write_bytes(b"the old one, longer")
        monkeypatch.setattr(os, "replace", busy)
        write_file(tmp_path / "x", b"new")
        assert files(tmp_path) == {"x": "new"}

    def test_a_pipe_is_written_to(self, tmp_path):
        pipe, got = tmp_path / "pipe", []
        os.mkfifo(pipe)
        check_file(pipe)
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
        reader.start()
        write_file(pipe, b"new")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        reader.join(10)
        assert got == [b"new"] and [path.name for path in tmp_path.iterdir()] == ["pipe"]

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
    def test_a_device_is_written_to(self, tmp_path):
        (tmp_path / "null").symlink_to(os.devnull)
        (tmp_path / "full").symlink_to("/dev/full")
        check_file(tmp_path / "null")
        write_file(tmp_path / "null", b"new")
        with pytest.raises(OutputError, match="full': No space left on device"):
            write_file(tmp_path / "full", b"new")
        assert all(path.is_symlink() and stat.S_ISCHR(path.stat().st_mode) for path in tmp_path.iterdir())


def test_json_has_no_nan():
    values = {"a": float("nan"), "b": [float("inf"), -float("inf")], "c": (1, 0.5, True, None, "x")}
    assert jsonable(values) == {"a": None, "b": ["Infinity", "-Infinity"], "c": [1, 0.5, True, None, "x"]}
    assert json.loads(to_json(values)) == jsonable(values)
