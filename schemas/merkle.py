"""Merkle trees of RFC 6962 section 2.1 (the same as RFC 9162 section 2.1.1) over SHA-256.

A leaf is hashed as SHA-256(0x00 ‖ data), an inner node as SHA-256(0x01 ‖ left ‖ right); a tree of n
leaves splits at the largest power of two below n.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from tallystick.schemas.errors import Malformed, Unverified

HASH_BYTES: Final = 32
# RFC 6962: the hash of an empty tree is the hash of the empty string.
EMPTY_ROOT: Final = sha256(b"").digest()
# In a tree so small a whole path costs less than what it would save.
SMALL: Final = 16


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def tree_levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree over leaf hashes, leaves first; a node without sibling moves up unchanged.

    Moving the odd node up gives the tree of RFC 6962, whose left subtrees are always full.
    """
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        level = levels[-1]
        above = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        levels.append(above)
    return levels


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of leaf hashes."""
    return tree_levels(leaves)[-1][0] if leaves else EMPTY_ROOT


def inclusion_path(levels: Sequence[Sequence[bytes]], index: int) -> list[bytes]:
    """The audit path of leaf `index`, from the `tree_levels` of its tree."""
    path = []
    for level in levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        index >>= 1
    return path


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a leaf hash, its index, the tree's size and an audit path lead to.

    RFC 9162 section 2.1.3.2.  Raises `Malformed` if index or lengths are impossible, `Unverified` if
    the path has not exactly the length that this position needs.
    """
    if not 0 <= index < size:
        raise Malformed("MERKLE_INDEX", f"index {index} in a tree of {size}")
    node, last, result = index, size - 1, leaf
    for sibling in path:
        if len(sibling) != HASH_BYTES:
            raise Malformed("MERKLE_PATH", f"a path hash has {HASH_BYTES} bytes, got {len(sibling)}")
        if last == 0:
            raise Unverified("MERKLE_PATH", f"path of {len(path)} hashes is too long for {index} of {size}")
        if node & 1 or node == last:
            result = node_hash(sibling, result)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            result = node_hash(result, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise Unverified("MERKLE_PATH", f"path of {len(path)} hashes is too short for {index} of {size}")
    return result


class Tree:
    """One tree of which leaves are shown one after the other, with their paths: each costs what it does not share.

    What a leaf's path proved is kept: the next leaf climbs only to where both meet.  It accepts exactly what
    `root_from_path` takes to the root, because in a tree of a given root and size each node has one value.
    """

    __slots__ = ("_index", "_nodes", "_path", "_used", "root", "size")

    def __init__(self, root: bytes, size: int) -> None:
        self.root = root
        self.size = size
        self._index = -1
        self._path: Sequence[bytes] = ()
        # By level, of the leaf that was shown last: its ancestors, and how much of its path lies below them.
        self._nodes: list[bytes] = []
        self._used: list[int] = []

    def require(self, leaf: bytes, index: int, path: Sequence[bytes]) -> None:
        """Raise `Malformed` or `Unverified` unless the leaf stands in the tree at `index`."""
        if self._index >= 0 and 0 <= index < self.size and self._joins(leaf, index, path):
            return
        if root_from_path(leaf, index, self.size, path) != self.root:
            raise Unverified("MERKLE_ROOT", "subject and events are not in the signed tree at this index")
        if self.size > SMALL:
            self._climb(leaf, index, path, (self.size - 1).bit_length())

    def _joins(self, leaf: bytes, index: int, path: Sequence[bytes]) -> bool:
        """Whether it meets what is proved; kept if so."""
        level = (index ^ self._index).bit_length()
        below, path_above = self._used[level], self._path
        nodes, used = self._nodes[level:], self._used[level:]
        if not self._climb(leaf, index, path, level):
            self._index = -1
            return False
        if self._nodes[level] != nodes[0] or path[self._used[level] :] != path_above[below:]:
            self._index = -1
            return False
        shift = self._used[level] - below
        self._nodes += nodes[1:]
        self._used += [count + shift for count in used[1:]]
        return True

    def _climb(self, leaf: bytes, index: int, path: Sequence[bytes], height: int) -> bool:
        """Ancestors up to `height`; False where the path is too short."""
        last, node, at, count = self.size - 1, leaf, index, 0
        nodes, used = [leaf], [0]
        for _ in range(height):
            if at ^ 1 <= last:
                if count == len(path):
                    return False
                node = node_hash(path[count], node) if at & 1 else node_hash(node, path[count])
                count += 1
            at >>= 1
            last >>= 1
            nodes.append(node)
            used.append(count)
        self._index, self._path, self._nodes, self._used = index, path, nodes, used
        return True
