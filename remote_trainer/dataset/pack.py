"""Turns a source (folder, archive, bucket) into an Input: every byte is read once and hashed once, chunks side by side on all cores.

Data below ``KEEP_BELOW`` is also copied into the cache, so that a queued job does not depend on the source any more; so is what came from
an archive or a bucket. Of bigger folders only the digests are kept: a second copy of 100 GB would cost more than the rare edit.
When such a source is edited before the job has shipped it, the job fails with a clear error and nothing wrong arrives.

Rules for editing: blocking work in threads; no asyncio beyond the way in.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.manifest import Part, digest_of, lay_out
from remote_trainer.dataset.sources import Source, open_source
from remote_trainer.dataset.threads import Gone, in_thread
from remote_trainer.dataset.tree import Block, Tree, blocks
from remote_trainer.model import Chunk, Input

KEEP_BELOW = 256 << 20
#: A file changed this shortly before it was read may change again without its times telling (coarse clocks: 10 ms; FAT: 2 s).
_CLOCK_GRAIN_NS = 2_000_000_000
_MOST_THREADS = 8


async def pack(
    source: str | Source, cache: Cache, *, name: str = "dataset", outside_links: bool = False, fleeting: bool = False
) -> Input:
    """Return the input that a folder, archive or ``s3://bucket/prefix`` holds; a source that did not change is not read again.

    ``outside_links`` follows links that leave the folder; ``fleeting`` says that the folder will soon be gone. DatasetError says what is
    wrong with which file.
    """
    opened = open_source(source, outside_links=outside_links) if isinstance(source, str) else source
    return await in_thread(lambda gone: _pack(opened, cache, name, gone, fleeting))


def _pack(source: Source, cache: Cache, name: str, gone: Gone, fleeting: bool) -> Input:
    started_ns = time.time_ns()
    signature = source.signature()
    known = cache.recall(source.name, signature)
    if known is not None:
        return replace(known, name=name, source=source.name)
    cache.sweep()
    with source.tree() as tree:
        parts = lay_out(tree.entries)
        size = sum(part.size for part in parts)
        keep = fleeting or source.fleeting or size < KEEP_BELOW
        chunks = _hash_all(parts, tree, cache if keep else None, gone)
        files = sum(not entry.folder for entry in tree.entries)
        given = Input(name=name, source=source.name, digest=digest_of(chunks), size=size, files=files, chunks=chunks)
        racy = not source.fleeting and tree.newest_ns > started_ns - _CLOCK_GRAIN_NS
        cache.remember(given, tree=None if keep else tree, signature="" if racy or fleeting else signature)
    return given


def _hash_all(parts: Sequence[Part], tree: Tree, cache: Cache | None, gone: Gone) -> tuple[Chunk, ...]:
    threads = min(_MOST_THREADS, os.cpu_count() or 1, len(parts))
    turn = Lock()
    with ThreadPoolExecutor(threads, thread_name_prefix="pack") as pool:
        digests = [pool.submit(_hash, _in_turn(part, tree, turn), cache, gone) for part in parts]
        try:
            hashed = [digest.result() for digest in digests]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # the first fault ends it all: nobody waits for 100 GB to be read
            raise
    return tuple(
        Chunk(sha256=sha256, size=part.size, path=part.path, offset=part.offset)
        for sha256, part in zip(hashed, parts, strict=True)
    )


def _in_turn(part: Part, tree: Tree, turn: Lock) -> Iterator[Block]:
    """Yield the bytes of a part. Small files are read by one thread at a time: two would only wait for Python's lock, four times a file."""
    found = blocks(part, tree)
    if part.piece:
        yield from found
        return
    while True:
        with turn:
            block = next(found, None)
        if block is None:
            return
        yield block


def _hash(found: Iterator[Block], cache: Cache | None, gone: Gone) -> str:
    gone.check()
    sha256 = hashlib.sha256()
    if cache is None:
        for block in found:
            sha256.update(block)
        return sha256.hexdigest()
    with cache.drafting() as draft:
        for block in found:
            sha256.update(block)
            draft.write(block)
        cache.keep(draft, sha256.hexdigest())
    return sha256.hexdigest()
