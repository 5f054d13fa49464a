"""What perf and strace print becomes parts of a round trip."""

import pytest

from bench.budget import Budget, part_of, read_calls, read_shares
from bench.contenders import WEFT, ZTUNNEL
from bench.tables import calls, hot_path

pytestmark = pytest.mark.unit


def test_samples_are_the_kernels_openssls_or_the_interpreters() -> None:
    report = """
    60.00%  [kernel.kallsyms]
    10.00%  libcrypto.so.3
     5.00%  libssl.so.3
    15.00%  python3.11
     5.00%  _ssl.cpython-311-x86_64-linux-gnu.so
     5.00%  libc.so.6
"""
    assert read_shares(report) == pytest.approx({"kernel": 0.6, "interpreter": 0.25, "OpenSSL": 0.15})
    assert read_shares("") == {}
    assert read_shares(report, ZTUNNEL) == pytest.approx({"kernel": 0.6, "user space": 0.4})
    assert part_of("[vdso]") == part_of("libpython3.13.so.1.0") == "interpreter"


def test_calls_are_counted_once_and_bytes_where_they_moved() -> None:
    trace = """
101 epoll_wait(4, [{EPOLLIN, {u32=9, u64=9}}], 64, 1000) = 1
101 recvfrom(9, ""..., 262144, 0, NULL, NULL) = 64
102 recvfrom(7,  <unfinished ...>
101 sendto(5, ""..., 102, 0, NULL, 0) = 102
102 <... recvfrom resumed>""..., 262144, 0, NULL, NULL) = 102
102 recvfrom(7, 0x7f, 262144, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)
103 --- SIGTERM {si_signo=SIGTERM} ---
"""
    calls, received, sent = read_calls(trace)
    assert calls == {"epoll_wait": 1, "recvfrom": 3, "sendto": 1}
    assert (received, sent) == (166, 102)


def test_the_table_says_what_was_not_measured() -> None:
    parts = {"kernel": 60.0, "OpenSSL": 5.0, "interpreter": 15.0}
    whole = Budget("1 connection", WEFT, 80.0, parts, {"sendto": 4.0}, 300.0, 300.0)
    other = Budget("1 connection", ZTUNNEL, 50.0, {"kernel": 40.0, "user space": 10.0})
    found = [whole, other, Budget("64 connections", WEFT, 20.0)]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in hot_path(found).splitlines()[2:]]
    assert lines == [
        ["1 connection", "U", "80", "kernel 60, OpenSSL 5, interpreter 15", "0.81"],
        ["1 connection", "Z", "50", "kernel 40, user space 10", "1.30"],
        ["64 connections", "U", "20", "not sampled", ""],
    ]
    counted = calls(found).splitlines()[2:]
    assert len(counted) == 2 and "sendto 4.00" in counted[0] and "not counted" in counted[1]
