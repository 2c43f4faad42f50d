"""`ImageEmbedder`: images to embeddings, as a scikit-learn transformer."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from ..errors import ImageError
from ..images import LesionImage, image_sha256, read_images, refusal_message, resize, shades_of_gray
from .cache import EmbeddingCache
from .engines import make_engine
from .networks import Backbone, create_backbone

_MAX_LISTED = 10  # refused images named in one message


class ImageEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images into embeddings: the features of a frozen network.

    Each of `n_jobs` threads takes a batch, decodes and resizes its images and runs the network on them.

    Parameters
    ----------
    backbone : str, default="efficientnet_lite0"
        Name of the network, see `list_backbones`; ``"timm:<model>"`` with the extra ``timm``.
    weights : str or Path, default="default"
        ``"default"``, a file, or ``"random"`` (for tests of software only), see `create_backbone`.
    batch_size : int, default=32
        Images that a thread takes at once, and hands to the cache at once.
    resize : {"crop", "squash"}, default="crop"
        What enters the network's square input: ``"crop"``, the middle of the image, undistorted; ``"squash"``, all of
        it, its sides resized to the same length. Cropping 4:3 dermoscopic images cuts off an eighth at either end; on
        HAM10000 (three splits by lesion, tuned logistic regression) accuracy was .753 against .741 and negative
        log-likelihood .698 against .714. Squash photographs in which the lesion may lie at the edge.
    image_size : int or None, default=None
        Side of the network's square input, in pixels; None is the size that it was trained at.
    color_constancy : {"shades_of_gray"} or None, default=None
        Takes the cast of the light out of each image first, see `cbdc.images.shades_of_gray`; against a shift between
        sites.
    n_views : {1, 2, 4, 8}, default=1
        Average the features over mirror images (2: left-right, 4: also upside down) and quarter turns (8): a lesion has
        no upright. Takes that many times as long.
    cache_dir : str, Path or None, default=None
        Folder that keeps embeddings between runs, by the sha256 of the image. A run that was killed resumes where it
        was. Embeddings are made from images of patients: guard the folder as you guard those.
    engine : {"auto", "onnx", "torch"}, default="auto"
        ``"torch"`` uses CUDA where there is some; ``"onnx"`` is ONNX Runtime on the CPU, several times as fast there
        (embeddings agree to 1e-4). ``"auto"`` takes torch with CUDA, and otherwise ONNX Runtime.
    n_jobs : int or None, default=None
        Threads; None or -1 takes one for each processor that this process may use.
    verbose : bool, default=False
        Show a progress bar, where there are more than `batch_size` images.

    Attributes
    ----------
    backbone_ : Backbone
    engine_ : str
        ``"onnx"``, ``"torch"`` or ``"torch-cuda"``.
    fingerprint_ : str
        Sha256 (hex) of weights and preprocessing: embeddings of one fingerprint may be mixed.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.backbones import ImageEmbedder
    >>> photos = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    >>> embeddings = ImageEmbedder().fit_transform(photos)
    >>> embeddings.shape, embeddings.dtype
    ((3, 1280), dtype('float32'))
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "backbone": [str],
        "weights": [str, os.PathLike],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "resize": [StrOptions({"squash", "crop"})],
        "image_size": [Interval(Integral, 32, None, closed="left"), None],
        "color_constancy": [StrOptions({"shades_of_gray"}), None],
        "n_views": [Options(Integral, {1, 2, 4, 8})],
        "cache_dir": [str, os.PathLike, None],
        "engine": [StrOptions({"auto", "onnx", "torch"})],
        "n_jobs": [Interval(Integral, 1, None, closed="left"), Options(Integral, {-1}), None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | Path = "default",
        batch_size: int = 32,
        resize: str = "crop",
        image_size: int | None = None,
        color_constancy: str | None = None,
        n_views: int = 1,
        cache_dir: str | Path | None = None,
        engine: str = "auto",
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.batch_size = batch_size
        self.resize = resize
        self.image_size = image_size
        self.color_constancy = color_constancy
        self.n_views = n_views
        self.cache_dir = cache_dir
        self.engine = engine
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.requires_fit = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "fingerprint_")

    def __getstate__(self) -> dict[str, Any]:
        # an engine holds locks and a session, which cannot be copied: a copy makes its own at first use
        return {key: value for key, value in super().__getstate__().items() if key != "_engine"}

    def fit(self, X: Any = None, y: Any = None) -> "ImageEmbedder":
        """Load the network; the images are not looked at.

        Parameters
        ----------
        X, y : ignored

        Returns
        -------
        ImageEmbedder
            Itself.

        Raises
        ------
        ValueError
            For an unknown backbone or parameter.
        MissingWeightsError, ModelFileError
            If the weights are not on this machine, or not those of the backbone.
        """
        self._validate_params()
        return self.use(create_backbone(self.backbone, self.weights, image_size=self.image_size))

    def use(self, backbone: Backbone) -> "ImageEmbedder":
        """Be fitted to a network that is there already, for example one that was fine-tuned.

        Parameters
        ----------
        backbone : Backbone

        Returns
        -------
        ImageEmbedder
            Itself.
        """
        self.backbone_ = backbone
        self._start_engine(self.engine)
        self._n_features_out = self.backbone_.n_features
        self.fingerprint_ = self._fingerprint()
        return self

    def _fingerprint(self) -> str:
        """Sha256 (hex) of weights and preprocessing as they now are."""
        preprocessing: dict[str, Any] = {"resize": self.resize, "filter": "bilinear"}
        if self.color_constancy is not None:
            preprocessing["color_constancy"] = self.color_constancy
        if self.n_views > 1:
            preprocessing["n_views"] = self.n_views
        identity = json.dumps([self.backbone_.fingerprint, preprocessing], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()

    def transform(self, X: Any) -> np.ndarray:
        """Embed images, all of which must be readable.

        Parameters
        ----------
        X : data set, sequence of n images, or uint8 array of shape (n, H, W, 3)
            An image is a path, the bytes of a file, a uint8 array (H, W, 3) or a `LesionImage`; a data set is
            anything with `.images`.

        Returns
        -------
        ndarray of shape (n, n_features), float32
            In the order of the images; a row does not depend on the others beyond rounding (1e-5).

        Raises
        ------
        ImageError
            If images cannot be used; the message lists them. `embed` gives such images NaN rows instead.
        """
        embeddings, refusals = self.embed(X)
        if refusals:
            raise ImageError(listed(refusals, len(embeddings)))
        return embeddings

    def embed(self, X: Any) -> tuple[np.ndarray, dict[int, ImageError]]:
        """Embed what can be read.

        Parameters
        ----------
        X : as in `transform`

        Returns
        -------
        embeddings : ndarray of shape (n, n_features), float32
            A row of NaN where the image was refused.
        refusals : dict of int to ImageError
            By the row's number; the message names image and reason.
        """
        check_is_fitted(self)
        if not hasattr(self, "_engine"):
            self._start_engine(self.engine_.partition("-")[0])
        sources = as_sources(X)
        n_threads = self.n_threads()
        size = min(self.batch_size, max(1, math.ceil(len(sources) / n_threads)))
        batches = [sources[start : start + size] for start in range(0, len(sources), size)]
        results: list[np.ndarray | ImageError] = []
        no_bar = not self.verbose or len(sources) <= self.batch_size
        with (
            self._open_cache() as cache,
            tqdm(total=len(sources), unit="image", disable=no_bar) as bar,
            ThreadPoolExecutor(n_threads) as pool,
        ):
            for rows in pool.map(partial(self._embed_batch, cache=cache), batches):
                results += rows
                bar.update(len(rows))
        embeddings = np.full((len(sources), self._n_features_out), np.nan, dtype=np.float32)
        refusals = {}
        for i, result in enumerate(results):
            if isinstance(result, ImageError):
                refusals[i] = ImageError(refusal_message(sources[i], i, result))
            else:
                embeddings[i] = result
        return embeddings, refusals

    def _embed_batch(self, sources: list[Any], cache: EmbeddingCache | None) -> list[np.ndarray | ImageError]:
        """Read, resize and embed, all in one thread: while it reads, the others keep the network busy."""
        batch: list[Any] = [self._prepare(source, cache) for source in sources]
        images = [item for item in batch if isinstance(item, LesionImage)]
        if not images:
            return batch
        features = self._features(np.stack([image.pixels for image in images]))
        if cache is not None:
            cache.put({image.sha256: row for image, row in zip(images, features, strict=True)})
        fresh = iter(features)
        return [next(fresh) if isinstance(item, LesionImage) else item for item in batch]

    def _prepare(self, source: Any, cache: EmbeddingCache | None) -> LesionImage | np.ndarray | ImageError:
        """The row that the cache holds, or the image in the network's input size, or why not."""
        if isinstance(source, LesionImage):
            source = source.pixels  # its sha256 says nothing of what was done to the pixels since
        if cache is not None:
            try:
                row = cache.get(image_sha256(source))
            except ImageError as error:
                return error
            if row is not None:
                return row
        return self.read(source, self.backbone_.input_size)

    def read(self, source: Any, size: tuple[int, int]) -> LesionImage | ImageError:
        """An image as the network is shown it, but of any size; or why it cannot be used.

        Parameters
        ----------
        source : path, bytes, uint8 array (H, W, 3) or LesionImage
        size : (height, width)

        Returns
        -------
        LesionImage or ImageError
        """
        image = read_images([source], size=size if self.resize == "squash" else None, n_jobs=1)[0]
        if isinstance(image, ImageError):
            return image
        pixels = image.pixels if self.resize == "squash" else _middle(image.pixels, size)
        return LesionImage(shades_of_gray(pixels) if self.color_constancy else pixels, image.sha256)

    def _features(self, pixels: np.ndarray) -> np.ndarray:
        """Uint8 (n, height, width, 3) to float32 (n, n_features), the mean over the views."""
        total = self._engine(pixels)
        for view in _views(pixels, self.n_views):
            total += self._engine(np.ascontiguousarray(view))
        return total / np.float32(self.n_views)

    def _start_engine(self, engine: str) -> None:
        self._engine = make_engine(self.backbone_, engine, self._cache_folder())
        self.engine_ = self._engine.name

    def n_threads(self) -> int:
        if self.n_jobs not in (None, -1):
            return self.n_jobs
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _cache_folder(self) -> Path | None:
        return None if self.cache_dir is None else Path(self.cache_dir)

    def _open_cache(self) -> AbstractContextManager[EmbeddingCache | None]:
        folder = self._cache_folder()
        if folder is None:
            return nullcontext()
        return closing(EmbeddingCache(folder / f"{self._fingerprint()}-{self.engine_}.sqlite"))


def _middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest middle part of the shape of `size`, resized to it."""
    (height, width), (rows, columns) = pixels.shape[:2], size
    scale = min(height / rows, width / columns)
    rows, columns = round(rows * scale), round(columns * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    return resize(pixels[top : top + rows, left : left + columns], size)


def _views(pixels: np.ndarray, n_views: int) -> Iterator[np.ndarray]:
    """The other views of a batch: its mirror images, then the same of it turned by a quarter."""
    for turned in (pixels, pixels.transpose(0, 2, 1, 3))[: 1 + n_views // 8]:
        flips = [turned, turned[:, :, ::-1], turned[:, ::-1], turned[:, ::-1, ::-1]]
        yield from flips[turned is pixels : min(n_views, 4)]


def as_sources(X: Any) -> list[Any]:
    X = getattr(X, "images", X)
    if isinstance(X, str | bytes | bytearray | os.PathLike | LesionImage) or (
        isinstance(X, np.ndarray) and X.ndim == 3
    ):
        raise TypeError("ImageEmbedder: got one image; expected several. Put it in a list: [image].")
    if isinstance(X, np.ndarray) and X.ndim not in (1, 4):
        raise ValueError(f"ImageEmbedder: got an array of shape {X.shape}; expected images, uint8 (n, H, W, 3).")
    if hasattr(X, "columns"):
        raise TypeError("ImageEmbedder: got a table; expected images. Give its column of paths: table['image'].")
    return list(X)


def listed(refusals: Mapping[int, object], n: int) -> str:
    lines = [f"{len(refusals)} of {n} images refused:", *map(str, list(refusals.values())[:_MAX_LISTED])]
    if len(refusals) > _MAX_LISTED:
        lines.append(f"and {len(refusals) - _MAX_LISTED} more (embed() gives them all).")
    return "\n".join(lines)
