"""What perf and strace print becomes parts of a round trip."""

import pytest

from bench.budget import Budget, part_of, read_calls, read_shares
from bench.tables import hot_path

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
    whole = Budget("1 connection", 80.0, {"kernel": 60.0, "OpenSSL": 5.0, "interpreter": 15.0}, {"sendto": 4.0}, 300.0, 300.0)
    text = hot_path([whole, Budget("64 connections", 20.0)])
    assert "kernel 60, OpenSSL 5, interpreter 15" in text and "sendto 4.00" in text
    assert "not sampled" in text and "not counted" in text
