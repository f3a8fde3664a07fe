"""Search in a folder of pictures (ALIGN, sections 5.1 and 7). Each picture is embedded once. The embeddings
are kept in an index: two files in a cache folder.

    INDEX/embeddings.safetensors    embeddings (N, D) float32, L2-normalized; keys (N, 16) uint8, one a row
    INDEX/names.json                the N file names, in the order of the rows; for other programs

A picture's key is a digest of the image tower and processor, and of the picture's path in the folder, its
size in bytes and the time of its last change. A row is used again if its key is still wanted, and a picture
without a row is embedded. So the result is right even if the index is incomplete, or was made for another
folder or model.
Leaves out: the picture's content. A picture that changes and keeps path, size and time is not embedded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..model import AlignModel
from ..processor import AlignProcessor
from ..support.hub import check_own, write_atomically
from ..support.weights_file import read_safetensors
from .pictures import find_in_folder
from .retrieval import compose, embed_images, embed_texts, readable, top_k

EMBEDDINGS, NAMES = "embeddings.safetensors", "names.json"
MARK = b'"written_by":"align-minimal search"'  # as it stands in the header of embeddings.safetensors


def fingerprint(model: AlignModel, processor: AlignProcessor) -> bytes:
    """A digest of everything that an image's embedding depends on: the image tower and the image processor.

    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> len(fingerprint(model, processor))
    32
    """
    settings = [model.config.vision_config.to_dict(), processor.image_processor.to_dict()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.vision_model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def cache_folder() -> Path:
    """The folder in which indexes are kept, unless the user names another; $XDG_CACHE_HOME moves it.

    >>> cache_folder().name
    'align_minimal'
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither $HOME nor an entry in the system's list of users
        raise OSError("no home folder to keep the index in: give --index, or set XDG_CACHE_HOME") from None
    return cache / "align_minimal"


def read_index(folder: Path, width: int) -> tuple[list[bytes], Tensor]:
    """Keys and embeddings (N, width) of an index. If it is broken, a warning, and no rows.

    >>> read_index(Path("no such folder"), width=160)
    ([], tensor([], size=(0, 160)))
    """
    path = folder / EMBEDDINGS
    if not path.is_file():
        return [], torch.empty(0, width)
    try:
        tensors = read_safetensors(path)  # mapped into memory: a row is read from the disk when it is used
        keys, embeds = tensors["keys"], tensors["embeddings"]
        rows = keys.shape[:1]
        if keys.shape != (*rows, 16) or embeds.shape != (*rows, width):
            raise ValueError(f"keys {tuple(keys.shape)}, embeddings {tuple(embeds.shape)}")
        if keys.dtype != torch.uint8 or embeds.dtype != torch.float32:
            raise ValueError(f"keys {keys.dtype}, embeddings {embeds.dtype}")
        lengths = torch.linalg.vector_norm(embeds, dim=1)
        if not ((lengths - 1).abs() < 1e-3).all():  # so that a number that is not finite is found, too
            raise ValueError("an embedding whose length is not 1")
    except FileNotFoundError:  # deleted since
        return [], torch.empty(0, width)
    except (SafetensorError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        warnings.warn(f"{path}: not an index of this model, made anew ({reason})", stacklevel=4)
        return [], torch.empty(0, width)
    return list(map(bytes, keys.numpy())), embeds


def check_index(folder: Path) -> None:
    """FileExistsError that names the file, unless the index in `folder` was written here, or there is none.

    >>> check_index(Path("no such folder"))
    """
    check_own(folder / EMBEDDINGS, MARK)
    if not (folder / EMBEDDINGS).exists():
        check_own(folder / NAMES, MARK)  # a plain list has no mark: it is ours where embeddings with one are


def list_of(names: list[str]) -> str:
    r"""What names.json holds.

    >>> list_of(["cat.jpg"])
    '[\n"cat.jpg"\n]\n'
    """
    return json.dumps(names, indent=0) + "\n"


def write_index(folder: Path, keys: list[bytes], names: list[str], embeds: Tensor) -> None:
    """Write both files, each of them whole or not at all.

    Only embeddings.safetensors is read again. It is written last, so the names are never older than it is. In
    a new folder it is written first, because its mark shows that the names are ours.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_index(Path(folder), [bytes(16)], ["cat.jpg"], torch.ones(1, 4))
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['embeddings.safetensors', 'names.json']
    """
    tensors = {
        "embeddings": embeds.contiguous(),  # (N, D)
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, 16),  # (N, 16)
    }
    mark = json.loads(b"{%s}" % MARK)
    text = list_of(names)
    writers = {
        NAMES: lambda temporary: temporary.write_text(text, encoding="utf-8"),
        EMBEDDINGS: lambda temporary: save_file(tensors, temporary, metadata=mark),
    }
    order = (NAMES, EMBEDDINGS) if (folder / EMBEDDINGS).exists() else (EMBEDDINGS, NAMES)
    for name in order:
        path = Path(os.path.realpath(folder / name))  # a link stays, and the file that it leads to is written
        try:
            write_atomically(path, writers[name])
        except FileNotFoundError:  # the folder was deleted meanwhile: once more, in a new one
            write_atomically(path, writers[name])


def remove_leftovers(folder: Path, age: float = 3600) -> None:
    """Delete temporary files of the index that are older than `age` seconds: `write_atomically` left them
    when its process was killed. A younger one may belong to another process.

    >>> remove_leftovers(Path("no such folder"))
    """
    for name in (EMBEDDINGS, NAMES):
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink()


class ImageIndex:
    """The pictures of a folder and their embeddings. Making an ImageIndex brings the index up to date.

    All folders inside `folder` are searched, too. `index` is the folder of the index; by default there is one
    in `cache_folder()` for each folder and model. It may be deleted at any time. Puts the model in eval mode.

    >>> import tempfile
    >>> model, processor = AlignModel.from_pretrained("emoji"), AlignProcessor.from_pretrained("emoji")
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     index = ImageIndex("weights/samples", model, processor, index=cache)
    >>> [(score, path)] = index.search("a red apple", top=1)
    >>> path.name
    'apple.png'

    `paths` are the N pictures, sorted, and `embeds` (N, D) their embeddings; `embedded` is how many are new.
    A picture that cannot be read is left out with a warning. Raises FileNotFoundError if there is no such
    folder, ValueError if no picture in it can be read, and OSError if the index cannot be written, or would
    replace a file of another program.
    """

    def __init__(
        self,
        folder: str | Path,
        model: AlignModel,
        processor: AlignProcessor,
        index: str | Path | None = None,
    ):
        self.folder, self.model, self.processor = Path(folder), model, processor
        self.digest = fingerprint(model, processor)
        self.index = Path(index) if index else self.own_folder()
        if index:
            check_index(self.index)
        self.pictures = self.find()
        self.keys, self.embeds = read_index(self.index, model.config.projection_dim)
        self.embedded = 0 if self.holds(list(self.pictures)) else self.update()
        if not self.keys:
            raise ValueError(f"{self.folder}: no picture here could be read")
        self.paths = [self.pictures[key] for key in self.keys]

    def find(self) -> dict[bytes, Path]:
        """The pictures by their keys; a warning for one that is gone since its folder was listed."""
        pictures = {}
        for path in find_in_folder(self.folder):
            try:
                pictures[self.key(path)] = path
            except OSError as error:
                warnings.warn(f"skipped: {path}: {error.strerror}", stacklevel=3)
        return pictures

    def own_folder(self) -> Path:
        digest = hashlib.sha256(self.digest + os.fsencode(os.path.realpath(self.folder))).hexdigest()
        return cache_folder() / digest[:32]

    def key(self, path: Path) -> bytes:
        """16 bytes that depend on the model and on the picture's path, size and time of last change."""
        stat = path.stat()
        parts = os.fsencode(path.relative_to(self.folder)), b"%d %d" % (stat.st_size, stat.st_mtime_ns)
        return hashlib.sha256(b"\0".join([self.digest, *parts])).digest()[:16]

    def update(self) -> int:
        """Embed new pictures, forget those that are gone, and save now and then. Returns how many are new."""
        remove_leftovers(self.index)
        self.index.mkdir(parents=True, exist_ok=True)  # an error here, if any, and not after the work
        known = set(self.keys)
        missing = {path: key for key, path in self.pictures.items() if key not in known}
        fresh: dict[bytes, Tensor] = {}
        saved, cost = time.monotonic(), 0.0
        model = self.model.for_inference() if missing else self.model
        images = embed_images(model, self.processor, [(str(path), path) for path in missing])
        bar = tqdm(images, "indexing", len(missing), unit="picture", leave=False)
        try:
            for name, embed in readable(bar, required=False):
                if not embed.isfinite().all():
                    raise ValueError(f"{name}: its embedding is not finite: the model's weights are broken")
                fresh[missing[Path(name)]] = embed
                if time.monotonic() - saved > max(1.0, 20 * cost):
                    began = time.monotonic()
                    self.save(fresh)
                    saved = time.monotonic()
                    cost = saved - began
        finally:
            self.keys, self.embeds = self.save(fresh)
        # The next call maps the file, whose rows lie otherwise in memory than new ones, and a product of them
        # may differ in its last bit. With the file's own rows, every call gives the same scores.
        keys, embeds = read_index(self.index, self.embeds.shape[1])
        if keys == self.keys:
            self.embeds = embeds
        return len(fresh)

    def save(self, fresh: dict[bytes, Tensor]) -> tuple[list[bytes], Tensor]:
        """Write and return the rows that are still wanted, old and new, in the order of the pictures."""
        row = {key: i for i, key in enumerate([*self.keys, *fresh])}
        keys = [key for key in self.pictures if key in row]
        if self.holds(keys):
            return self.keys, self.embeds
        embeds = torch.cat([self.embeds, *(x[None] for x in fresh.values())])[[row[key] for key in keys]]
        if keys:
            write_index(self.index, keys, self.names(keys), embeds)
        return keys, embeds

    def names(self, keys: list[bytes]) -> list[str]:
        return [str(self.pictures[key].relative_to(self.folder)) for key in keys]

    def holds(self, keys: list[bytes]) -> bool:
        """Whether the index has these rows in this order, and beside them their names."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.index / NAMES).read_text(encoding="utf-8")
            return keys == self.keys and text == list_of(self.names(keys))
        return False

    def queries(
        self,
        texts: Sequence[str] = (),
        image: str | Path | None = None,
        minus: str | None = None,
        text_weight: float = 2.0,
    ) -> Tensor:
        """Queries (Q, D), L2-normalized: one for each text, combined with `image` and `minus` by `compose`;
        without texts, one for the image. Raises ValueError if the image cannot be read."""
        vectors = embed_texts(self.model, self.processor, [*texts, *([minus] if minus else [])])
        image_embed = None
        if image is not None:
            [(_, image_embed)] = embed_images(self.model, self.processor, [(str(image), Path(image))])
            if isinstance(image_embed, Exception):
                raise image_embed
        minus_embed = vectors[len(texts)] if minus else None
        text_embeds = vectors[: len(texts)] if texts else None
        query = torch.atleast_2d(compose(text_embeds, image_embed, minus_embed, text_weight))
        if not query.isfinite().all():
            raise ValueError("the query's embedding is not finite: the model's weights are broken")
        return query

    def nearest(self, queries: Tensor, top: int = 10) -> list[list[tuple[float, Path]]]:
        """For each of the queries (Q, D) the `top` best as (cosine, picture), best first."""
        scores, rows = top_k(queries, self.embeds, top)
        return [
            [(score, self.paths[row]) for score, row in zip(*pair, strict=True)]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def search(self, text: str | None = None, top: int = 10, **more) -> list[tuple[float, Path]]:
        """The `top` best for one query as (cosine, picture), best first. For `more`, see `queries`."""
        return self.nearest(self.queries([text] if text else [], **more), top)[0]
