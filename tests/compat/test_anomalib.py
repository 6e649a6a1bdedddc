"""compat.anomalib against the real anomalib: `make test-anomalib` installs it, in an environment of its own."""

import importlib.util

import numpy as np
import peers
import pytest
import torch

if importlib.util.find_spec("anomalib") is None:
    pytest.skip("anomalib is not installed; make test-anomalib", allow_module_level=True)

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
if torch.version.cuda is None:
    # torchvision's wheel is built for torch's CUDA build and cannot be imported with the CPU build, which lacks these
    # two operators. Nothing here calls them.
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from anomalib.data import Folder  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Patchcore  # noqa: E402
from anomalib.models.components import KCenterGreedy, SparseRandomProjection  # noqa: E402
from PIL import Image  # noqa: E402

from diverseevol_fast.compat import anomalib as compat  # noqa: E402

THEIRS = KCenterGreedy.select_coreset_idxs


@pytest.fixture
def patched():
    """compat.patch(), and afterwards anomalib as it was."""
    compat.patch()
    yield
    KCenterGreedy.select_coreset_idxs = THEIRS


def seeded(call):
    torch.manual_seed(3)
    np.random.seed(3)
    return call()


def normal(*shape):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def equal_but_for_ties(embedding, ours, theirs):
    """The features are drawn again, for the distances in which a difference must be a tie."""
    assert ours[0] == theirs[0]
    if ours != theirs:
        model = SparseRandomProjection(eps=0.9)
        features = seeded(lambda: model.fit(embedding).transform(embedding)) if embedding.ndim == 2 else embedding
        assert peers.ties(features, ours[:1], ours[1:]) == 0
        assert peers.ties(features, theirs[:1], theirs[1:]) > 0


SHAPES = [(2_000, 64), (5_000, 384), (300, 4, 8), (40, 1), (1_000, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.5])
def test_coreset_indices(shape, ratio):
    x = normal(*shape)
    theirs = seeded(lambda: KCenterGreedy(x, ratio).select_coreset_idxs())
    following = torch.rand(1), np.random.random()
    ours = seeded(lambda: compat.KCenterGreedy(x, ratio).select_coreset_idxs())
    assert following == (torch.rand(1), np.random.random())  # as many numbers were drawn
    equal_but_for_ties(x, ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_patched_coreset(shape, patched):
    x = normal(*shape)
    ours = seeded(lambda: KCenterGreedy(x, 0.1).sample_coreset())
    picks = seeded(lambda: KCenterGreedy(x, 0.1).select_coreset_idxs())
    assert (ours == x[picks]).all()
    assert picks == seeded(lambda: compat.KCenterGreedy(x, 0.1).select_coreset_idxs())
    KCenterGreedy.select_coreset_idxs = THEIRS
    equal_but_for_ties(x, picks, seeded(lambda: KCenterGreedy(x, 0.1).select_coreset_idxs()))


@pytest.mark.parametrize("shape", SHAPES)
def test_projection(shape):
    if len(shape) == 2:
        model = seeded(lambda: SparseRandomProjection(eps=0.9).fit(normal(*shape)))
        assert torch.equal(seeded(lambda: compat.projection(*shape)), model.sparse_random_matrix)


def test_an_unknown_version_is_left_alone(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.99.0")
    with pytest.raises(ImportError, match=r"anomalib 2\.99\.0"):
        compat.patch()
    assert KCenterGreedy.select_coreset_idxs is THEIRS


def images(folder):
    """Generated textures: 8 normal ones to train on, 2 to test with, 2 with a bright spot."""
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 8), ("test/good", 2), ("test/spot", 2)):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
            if kind == "test/spot":
                pixels[20:40, 20:40] = 255
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")


def fit(folder, results):
    """The memory bank of a PatchCore that was trained on the images, and the AUROC of each image's score."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = Patchcore(
        backbone="resnet18",
        layers=["layer2"],
        pre_trained=False,
        coreset_sampling_ratio=0.2,
        pre_processor=Patchcore.configure_pre_processor(image_size=(64, 64), center_crop_size=(64, 64)),
    )
    data = Folder(
        name="textures",
        root=folder,
        normal_dir="train/good",
        abnormal_dir="test/spot",
        normal_test_dir="test/good",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        val_split_mode="same_as_test",
    )
    engine = Engine(default_root_dir=results, accelerator="cpu", devices=1, logger=False, max_epochs=1)
    engine.fit(model, datamodule=data)
    scores = engine.test(model, datamodule=data)[0]
    return model.model.memory_bank.clone(), scores


def test_patchcore(tmp_path):
    images(tmp_path / "data")
    theirs, their_scores = fit(tmp_path / "data", tmp_path / "theirs")
    calls = []

    def counted(self, *arguments):
        calls.append(self.coreset_size)
        return ours(self, *arguments)

    try:
        compat.patch()
        ours = KCenterGreedy.select_coreset_idxs
        KCenterGreedy.select_coreset_idxs = counted
        bank, scores = fit(tmp_path / "data", tmp_path / "ours")
    finally:
        KCenterGreedy.select_coreset_idxs = THEIRS
    assert calls == [len(bank)]
    assert len(bank) == int(8 * 8 * 8 * 0.2)
    assert torch.equal(bank, theirs)
    assert scores == their_scores
