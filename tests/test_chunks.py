"""Chunks that overlap, and what was heard in them joined again."""

from itertools import pairwise

import numpy as np
import pytest

from asr.chunks import Frames, Texts, Window, batched, cut, seam, text_of, text_seam


def cut_up(length, window, block=1000):
    samples = np.arange(length, dtype=np.float32)
    return samples, list(cut(0, (samples[i : i + block] for i in range(0, length, block)), window))


@pytest.mark.parametrize("block", [7, 100, 5000])
@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 170, 171, 1000])
def test_chunks_cover_a_recording_and_overlap(length, block):
    window = Window(100, 30)
    samples, chunks = cut_up(length, window, block)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True] * bool(chunks)
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.samples, samples[chunk.start : chunk.start + len(chunk.samples)])
        assert len(chunk.samples) <= 100
    for before, after in pairwise(chunks):
        assert (len(before.samples), after.start) == (100, before.start + 70)
        assert len(after.samples) > 30  # it brings something new
    if chunks:
        assert chunks[-1].start + len(chunks[-1].samples) == length


def test_chunks_begin_at_whole_frames():
    window = Window.of(2.7, 0.9, 16000, unit=480)
    assert window.size % 480 == window.overlap % 480 == 0
    assert abs(window.size / 16000 - 2.7) < 0.03
    assert Window.of(0.5, 0.25, 16000, unit=16000).step > 0


def test_batches_are_of_chunks_alike_in_length_and_lose_none():
    dice = np.random.default_rng(0)
    chunks = [chunk for i in range(40) for chunk in cut(i, [np.zeros(dice.integers(1, 250), np.float32)], Window(100, 30))]
    for rows in (None, 3):
        batches = list(batched(iter(chunks), 400, rows=rows))
        assert sorted((c.recording, c.number) for batch in batches for c in batch) == sorted((c.recording, c.number) for c in chunks)
        assert all(len(batch) * max(len(c.samples) for c in batch) <= 400 for batch in batches)
        assert all(len(batch) <= (rows or 400) for batch in batches)
        padding = sum(max(len(c.samples) for c in b) - len(c.samples) for b in batches for c in b)
        assert padding < sum(len(c.samples) for c in chunks) / 3


def test_a_chunk_longer_than_a_batch_has_its_own():
    assert [len(batch) for batch in batched(cut(0, [np.zeros(250, np.float32)], Window(100, 30)), 10)] == [1, 1, 1, 1]


def test_a_stream_of_chunks_is_taken_as_it_comes():
    taken = []

    def endless():
        for i in range(10**6):
            taken.append(i)
            yield next(cut(i, [np.zeros(100, np.float32)], Window(100, 30)))

    next(batched(endless(), 1000))
    assert len(taken) <= 40


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_frames_that_chunks_agree_on_come_out_as_they_are(order):
    whole = np.random.default_rng(1).integers(0, 5, 34).astype(np.int32)
    frames = Frames()
    for number in order:
        frames.add(number, 8 * number, whole[8 * number : 8 * number + 10])
    np.testing.assert_array_equal(frames.end(), whole)


def test_what_a_chunk_hears_wrong_at_its_edges_is_left_out():
    whole = np.tile(np.array([0, 5, 5, 0, 6, 0, 7, 0, 0, 4], np.int32), 6)
    frames = Frames()
    for number in range(3):
        heard = whole[20 * number : 20 * number + 32 if number < 2 else None].copy()
        if number:
            heard[:3] = 9
        if number < 2:
            heard[-3:] = 8
        frames.add(number, 20 * number, heard)
    np.testing.assert_array_equal(frames.end(), whole)


def test_a_token_at_different_frames_of_two_chunks_is_said_once():
    """Cut at the middle, frame 5, the 7 would be said twice."""
    left = np.array([0, 0, 0, 7, 0, 0, 0, 0, 0, 0], np.int32)
    right = np.array([0, 0, 0, 0, 0, 0, 7, 0, 0, 0], np.int32)
    for a, b in ((left, right), (right, left)):
        kept = seam(a, b)
        assert ([*a[:kept], *b[kept:]].count(7)) <= 1
    assert seam(np.array([1, 2], np.int32), np.array([3, 4], np.int32)) == 1


def texts(*said, size=100, step=70):
    joined = Texts()
    for number, text in reversed(list(enumerate(said))):
        joined.add(number, text, step * number, size)
    return text_of(part for part, _, _ in joined.end())


@pytest.mark.parametrize(
    ("left", "right", "whole"),
    [
        ("it was the best of times it", "of times it was the worst of", "it was the best of times it was the worst of"),
        ("it was the best of ti", "f times it was the worst of", "it was the best of times it was the worst of"),
        ("it was the best of Times,", "of times it was the worst of", "it was the best of times it was the worst of"),
        ("five one nine nine nine", "nine nine two two zero one", "five one nine nine nine two two zero one"),
        ("我们今天去北京看朋友", "看朋友然后再回家吃饭", "我们今天去北京看朋友然后再回家吃饭"),
        ("كان أفضل الأوقات كان", "الأوقات كان أسوأ الأوقات", "كان أفضل الأوقات كان أسوأ الأوقات"),
        ("", "then somebody spoke", "then somebody spoke"),
        ("somebody spoke", "", "somebody spoke"),
        ("", "", ""),
    ],
)
def test_texts_are_joined_without_a_word_twice(left, right, whole):
    assert texts(left, right).replace("Times,", "times") == whole


def test_texts_with_nothing_in_common_are_each_cut_in_the_middle_of_the_overlap():
    assert texts("aa bb cc dd ee ff", "gg hh ii jj kk ll") == "aa bb cc dd ee hh ii jj kk ll"


def test_texts_without_an_overlap_are_kept_whole():
    assert text_seam("one two", "two three", 0.0, 0.0) == (7, 0)


def test_parts_have_the_times_of_their_chunks():
    joined = Texts()
    joined.add(0, "it was the best of times it", 0, 100)
    joined.add(1, "of times it was the worst of", 70, 60)
    assert [(start, end) for _, start, end in joined.end()] == [(0, 85), (85, 130)]
    assert Texts().end() == []
