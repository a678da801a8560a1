"""Merkle trees: published vectors, a second implementation from the RFC's text, and every tree up to 256 leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.schemas import merkle
from tallystick.schemas.errors import Malformed, TallystickError, Unverified
from tallystick.schemas.merkle import Tree, inclusion_path, leaf_hash, node_hash, root_from_path, tree_levels, tree_root

# Provenance: the reference tree of Certificate Transparency (github.com/google/certificate-transparency,
# merkletree tests; the same in github.com/transparency-dev/merkle, testonly/constants.go).
INPUTS = [
    bytes.fromhex(h)
    for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# (index, size) -> path, from the same tests (which count leaves from 1).
PATHS: dict[tuple[int, int], list[str]] = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
LEAVES = [leaf_hash(i.to_bytes(2, "big")) for i in range(257)]


def split(n: int) -> int:
    return 1 << ((n - 1).bit_length() - 1)


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word, over leaf hashes."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path_of(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path_of(m, leaves[:k]), mth(leaves[k:])]
    return [*path_of(m - k, leaves[k:]), mth(leaves[:k])]


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert tree_root([leaf_hash(i) for i in INPUTS[:size]]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_published_paths(index: int, size: int) -> None:
    leaves = [leaf_hash(i) for i in INPUTS[:size]]
    path = inclusion_path(tree_levels(leaves), index)
    assert [h.hex() for h in path] == PATHS[index, size]
    assert root_from_path(leaves[index], index, size, path).hex() == ROOTS[size]


def test_a_leaf_is_never_a_node() -> None:
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right)
    assert leaf_hash(b"\x01" + left + right) != node_hash(left, right)


def test_every_root_up_to_256_leaves_is_that_of_the_rfc() -> None:
    for size in range(257):
        assert tree_root(LEAVES[:size]) == mth(LEAVES[:size])


def test_every_path_up_to_64_leaves_is_that_of_the_rfc() -> None:
    for size in range(1, 65):
        levels = tree_levels(LEAVES[:size])
        for index in range(size):
            assert inclusion_path(levels, index) == path_of(index, LEAVES[:size])


def test_every_path_up_to_256_leaves_verifies_and_no_longer_or_shorter_one() -> None:
    for size in range(1, 257):
        levels = tree_levels(LEAVES[:size])
        for index in range(size):
            path = inclusion_path(levels, index)
            assert root_from_path(LEAVES[index], index, size, path) == levels[-1][0]
            with pytest.raises(Unverified, match="too long"):
                root_from_path(LEAVES[index], index, size, [*path, LEAVES[256]])
            if path:
                with pytest.raises(Unverified, match="too short"):
                    root_from_path(LEAVES[index], index, size, path[:-1])


def leads_to(root: bytes, leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bool:
    try:
        return root_from_path(leaf, index, size, path) == root
    except TallystickError:
        return False


def test_no_path_verifies_at_another_index() -> None:
    for size in range(1, 41):
        levels = tree_levels(LEAVES[:size])
        for index in range(size):
            path = inclusion_path(levels, index)
            for wrong in range(size):
                assert leads_to(levels[-1][0], LEAVES[index], wrong, size, path) == (wrong == index)


def test_no_path_verifies_another_leaf_or_with_a_hash_changed() -> None:
    for size in range(1, 65):
        levels = tree_levels(LEAVES[:size])
        root = levels[-1][0]
        for index in range(size):
            path = inclusion_path(levels, index)
            assert not leads_to(root, LEAVES[256], index, size, path)
            for i, sibling in enumerate(path):
                changed = [*path[:i], bytes((sibling[0] ^ 1,)) + sibling[1:], *path[i + 1 :]]
                assert not leads_to(root, LEAVES[index], index, size, changed)


def test_no_path_verifies_against_the_root_of_a_tree_of_another_size() -> None:
    roots = [tree_root(LEAVES[:size]) for size in range(41)]
    for size in range(1, 41):
        levels = tree_levels(LEAVES[:size])
        for index in range(size):
            path = inclusion_path(levels, index)
            for wrong in range(1, 41):
                assert leads_to(roots[wrong], LEAVES[index], index, wrong, path) == (wrong == size)


@pytest.mark.parametrize(("index", "size"), [(-1, 4), (4, 4), (0, 0), (1, 0), (2**63, 4)])
def test_an_index_outside_the_tree_is_malformed(index: int, size: int) -> None:
    with pytest.raises(Malformed, match="MERKLE_INDEX"):
        root_from_path(LEAVES[0], index, size, [])


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_path_hash_of_another_length_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match="MERKLE_PATH"):
        root_from_path(LEAVES[0], 0, 2, [bytes(length)])


def test_a_path_of_thousands_ends_at_the_first_hash_too_many() -> None:
    with pytest.raises(Unverified, match="too long"):
        root_from_path(LEAVES[0], 0, 2, [bytes(32)] * 10_000)


def says(tree: Tree, leaf: bytes, index: int, path: Sequence[bytes]) -> str:
    """How the leaf is refused; "" where it is taken."""
    try:
        tree.require(leaf, index, path)
    except TallystickError as exc:
        return f"{exc.code} {exc.text}"
    return ""


def test_every_leaf_of_every_tree_is_taken_in_its_order_and_the_other_way_round() -> None:
    for size in range(1, 130):
        levels = tree_levels(LEAVES[:size])
        for order in (range(size), reversed(range(size)), sorted(range(size), key=lambda i: i * 37 % 131)):
            tree = Tree(levels[-1][0], size)
            for index in order:
                tree.require(LEAVES[index], index, tuple(inclusion_path(levels, index)))


@given(st.data())
def test_what_was_shown_before_changes_no_verdict(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    levels = tree_levels(LEAVES[:size])
    tree = Tree(levels[-1][0], size)
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, size - 1))
        leaf, path = LEAVES[index], inclusion_path(levels, index)
        match data.draw(st.sampled_from(("right", "right", "leaf", "index", "cut", "longer", "hash", "length"))):
            case "leaf":
                leaf = LEAVES[256]
            case "index":
                index = data.draw(st.integers(-1, size + 1))
            case "cut":
                path = path[: data.draw(st.integers(0, len(path)))]
            case "longer":
                path = [*path, LEAVES[data.draw(st.integers(0, 256))]]
            case "hash" if path:
                path[data.draw(st.integers(0, len(path) - 1))] = LEAVES[data.draw(st.integers(0, 256))]
            case "length" if path:
                place = data.draw(st.integers(0, len(path) - 1))
                path[place] = path[place][: data.draw(st.integers(0, 32))]
        assert says(tree, leaf, index, tuple(path)) == says(Tree(tree.root, size), leaf, index, tuple(path))


def test_a_leaf_that_follows_another_costs_what_it_does_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = tree_levels(LEAVES[:256])
    hashed = 0

    def counted(left: bytes, right: bytes) -> bytes:
        nonlocal hashed
        hashed += 1
        return node_hash(left, right)

    monkeypatch.setattr(merkle, "node_hash", counted)
    tree = Tree(levels[-1][0], 256)
    tree.require(LEAVES[0], 0, tuple(inclusion_path(levels, 0)))
    hashed = 0
    for index in range(1, 256):
        tree.require(LEAVES[index], index, tuple(inclusion_path(levels, index)))
    assert hashed < 2 * 256
