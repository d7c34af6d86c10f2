"""Passes side by side: all are done, errors come out, and torch keeps its threads."""

from __future__ import annotations

import threading

import pytest
import torch

from autolr.pack.thread_pool import ThreadPool


def test_all_is_done_and_side_by_side():
    crew, together, done = ThreadPool(2), threading.Barrier(2, timeout=20), []

    def do(item: int) -> None:
        together.wait()  # passes only where two are at work at once
        done.append(item)

    crew.work(do, range(6))
    crew.close()
    assert sorted(done) == list(range(6))


def test_the_caller_does_what_needs_no_other():
    crew, seen = ThreadPool(1), []
    crew.work(lambda item: seen.append((item, threading.current_thread())), range(3))
    crew.close()
    assert seen == [(item, threading.main_thread()) for item in range(3)]


def test_an_error_comes_out_once_all_have_ended():
    crew, done = ThreadPool(2), []

    def do(item: int) -> None:
        if item == 1:
            raise ValueError("item 1")
        done.append(item)

    with pytest.raises(ValueError, match="item 1"):
        crew.work(do, range(5))
    assert sorted(done) == [0, 2, 3, 4]
    crew.close()


def test_each_worker_has_its_share_of_the_threads_and_all_come_back():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        crew = ThreadPool(2)
        crew.work(lambda item: seen.append(torch.get_num_threads()), range(4))
        assert seen == [2] * 4
        crew.close()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
