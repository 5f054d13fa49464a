"""Where kernel headers are looked for, and in which order."""

from pathlib import Path

import pytest

from bpf.headers import Headers, find_headers

pytestmark = pytest.mark.unit


def whole_tree(path: Path) -> Path:
    for name in ("include/linux/kconfig.h", "include/generated/autoconf.h"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


def split_tree(sources: Path, version: str) -> Headers:
    common, build = sources / f"linux-headers-{version}-common", sources / f"linux-headers-{version}-amd64"
    for path in (common / "include/linux/kconfig.h", build / "include/generated/autoconf.h"):
        path.parent.mkdir(parents=True)
        path.touch()
    (build / "Makefile").write_text(f"include {common}/Makefile\n")
    return Headers(common, build)


def find(root: Path, **environment: str) -> Headers:
    return find_headers(environment, "6.9.0-test", root / "modules", root / "src")


def test_what_the_environment_names_comes_first(tmp_path: Path) -> None:
    whole_tree(tmp_path / "modules/6.9.0-test/build")
    named = whole_tree(tmp_path / "named")
    assert find(tmp_path, BCC_KERNEL_SOURCE=str(named)) == Headers(named, named)


def test_a_named_folder_without_headers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"BCC_KERNEL_SOURCE={tmp_path} holds no kernel headers"):
        find(tmp_path, BCC_KERNEL_SOURCE=str(tmp_path))


def test_the_running_kernels_come_before_any_others(tmp_path: Path) -> None:
    split_tree(tmp_path / "src", "6.12.1")
    running = whole_tree(tmp_path / "modules/6.9.0-test/build")
    assert find(tmp_path) == Headers(running, running)


def test_a_dangling_build_link_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "modules/6.9.0-test").mkdir(parents=True)
    (tmp_path / "modules/6.9.0-test/build").symlink_to(tmp_path / "gone")
    assert find_or_error(tmp_path).startswith("no kernel headers found")


def find_or_error(root: Path) -> str:
    with pytest.raises(RuntimeError) as raised:
        find(root)
    return str(raised.value)


def test_the_newest_installed_split_tree_is_taken(tmp_path: Path) -> None:
    split_tree(tmp_path / "src", "6.9.9")
    newest = split_tree(tmp_path / "src", "6.12.1")
    found = find(tmp_path)
    assert found == newest
    assert found.flags("x86_64") == [
        f"-I{newest.build}/{tree}"
        for tree in ("arch/x86/include/generated", "include", "arch/x86/include/generated/uapi", "include/generated/uapi")
    ]


def test_none_names_the_package(tmp_path: Path) -> None:
    assert "apt-get install linux-headers-" in find_or_error(tmp_path)
