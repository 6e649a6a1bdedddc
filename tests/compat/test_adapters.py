"""The drop-in adapters against their targets' described behavior, restated in bench/peers.py."""

import sys
import types

import numpy as np
import peers
import pytest
import torch

from diverseevol_fast import kcenter
from diverseevol_fast.compat import anomalib, deepal, google, upstream
from diverseevol_fast.compat._adapter import pick
from diverseevol_fast.ops import reference

SIZES = [(17, 3, 2, 5), (300, 8, 1, 40), (1_000, 32, 100, 100), (2_000, 384, 10, 60)]  # N, D, centers, picks


def rows(n, d, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def clustered(n, d, seed=0):
    """Rows in tight groups around few points, away from the origin, where float32 formulas cancel."""
    rng = np.random.default_rng(seed)
    return (5 + rng.standard_normal((n // 20 + 1, d)).repeat(20, 0)[:n] + 0.01 * rng.standard_normal((n, d))).astype(
        np.float32
    )


def equal_but_for_ties(x, centers, ours, theirs, unit=False):
    """Ours is float64 greedy; theirs is the same sequence, or each difference is a tie, and then they are counted."""
    wanted = torch.as_tensor(np.asarray(x, dtype=np.float64)).reshape(len(x), -1)
    wanted = torch.nn.functional.normalize(wanted) if unit else wanted
    assert peers.ties(wanted, centers, ours) == 0
    if ours != theirs:
        assert peers.ties(x, centers, theirs, unit) > 0


class TestPick:
    def test_it_is_kcenter(self):
        x = rows(200, 8)
        assert pick(x, 20, [3, 5]) == kcenter(x, 20, [3, 5]).indices.tolist()
        assert pick(x, 20, [], first=7) == [7, *kcenter(x, 19, [7]).indices.tolist()]
        assert pick(x, 0, [], first=7) == []
        assert pick(x, 5, np.array([3, 3, 5])) == pick(x, 5, [3, 5]) == pick(x, 5, np.isin(np.arange(200), [3, 5]))

    @pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, bool])
    def test_other_numbers_are_rounded_to_float32(self, dtype):
        x = (rows(200, 8, dtype=np.float64) * 3).astype(dtype)
        wanted = reference.kcenter(torch.from_numpy(x.astype(np.float32)), 10, [4])[0]
        assert pick(x, 10, [4]) == pick(torch.from_numpy(x), 10, [4]) == wanted

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_kept(self, dtype):
        x = torch.from_numpy(rows(200, 8)).to(dtype)
        assert pick(x, 10, [4]) == reference.kcenter(x, 10, [4])[0]

    def test_cosine_takes_directions(self):
        x = rows(5_000, 6) * np.random.default_rng(1).uniform(0.01, 100, (5_000, 1)).astype(np.float32)
        picks = pick(x, 30, [0], metric="cosine")
        assert picks == pick(x * 4, 30, [0], metric="cosine") != pick(x, 30, [0])
        unit = torch.nn.functional.normalize(torch.from_numpy(x).double()).float()
        assert picks == reference.kcenter(unit, 30, [0])[0]

    def test_a_row_without_direction_is_named(self):
        x = rows(5_000, 6)
        x[4_500] = 0
        with pytest.raises(ValueError, match="row 4500 is all zeros and has no direction"):
            pick(x, 3, [0], metric="cosine")

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_views_of_any_strides(self, dtype, metric):
        x = rows(200, 8, dtype=dtype)
        wanted = pick(x, 20, [0], metric=metric)
        read_only = x.copy()
        read_only.flags.writeable = False
        for view in (x[:, ::-1], x.repeat(2, 1)[:, ::2], np.asfortranarray(x), x[::-1].copy()[::-1], read_only):
            assert pick(view, 20, [0], metric=metric) == wanted

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    def test_what_is_no_matrix_of_numbers(self, metric):
        for wrong in (rows(5, 2)[:, 0], rows(5, 2)[:0], torch.zeros(2, 3, 4)):
            with pytest.raises(ValueError, match=r"x: expected shape \[N, D\]"):
                pick(wrong, 1, [0], metric=metric)
        for wrong in (rows(5, 2).astype(object), rows(5, 2) + 0j, torch.zeros(5, 2) + 0j, "rows", None):
            with pytest.raises(TypeError, match="x: expected "):
                pick(wrong, 1, [0], metric=metric)

    @pytest.mark.parametrize("metric", ["manhattan", None, len])
    def test_another_metric_is_refused_by_name(self, metric):
        with pytest.raises(ValueError, match="expected 'euclidean', 'l2' or 'cosine', got"):
            pick(rows(5, 2), 1, [0], metric=metric)
        with pytest.raises(ValueError, match="expected 'euclidean', 'l2' or 'cosine', got"):
            google.kCenterGreedy(rows(5, 2), None, 0, metric=metric)


class Doubling:
    def transform(self, x):
        return x.reshape(len(x), -1)[:, ::-1] * [2.0] + 1


class Unfitted:
    def transform(self, x):
        raise RuntimeError("not fitted yet")


class TestGoogle:
    @pytest.mark.parametrize("metric", ["euclidean", "l2", "cosine"])
    @pytest.mark.parametrize(("n", "d", "m", "k"), SIZES)
    @pytest.mark.parametrize("make", [rows, clustered])
    def test_sequence(self, make, n, d, m, k, metric):
        x, centers = make(n, d), list(range(0, n, n // m))[:m]
        ours = google.kCenterGreedy(x, None, 0, metric).select_batch_(None, centers, k)
        theirs = peers.Google(x, metric).select_batch(None, centers, k)
        if metric == "cosine":
            x = torch.nn.functional.normalize(torch.from_numpy(x).double()).float().numpy()
        equal_but_for_ties(x, centers, ours, theirs)

    @pytest.mark.parametrize("model", [None, Doubling()])
    @pytest.mark.parametrize("empty", [[], (), np.array([], dtype=int)])
    def test_without_a_center_row_0_comes_first_and_nothing_is_drawn(self, model, empty):
        """In the first call, and in the second: of the same rows where a model transforms, after them elsewhere."""
        x, state = rows(500, 8), np.random.get_state()[1].copy()
        ours, theirs = google.kCenterGreedy(x, None, 0), peers.Google(x)
        first = ours.select_batch_(model, empty, 20)
        assert first == theirs.select_batch(model, list(empty), 20)
        assert first[0] == 0
        second = ours.select_batch_(model, empty, 20)
        assert second == theirs.select_batch(model, list(empty), 20)
        assert second == first if model else not set(first) & set(second)
        assert (np.random.get_state()[1] == state).all()

    @pytest.mark.parametrize("model", [None, object(), Unfitted()])
    def test_images_are_flattened_without_a_model_that_transforms(self, model, caplog):
        x = rows(100, 48).reshape(100, 4, 4, 3)
        sampler = google.kCenterGreedy(x, np.zeros(100), 3)
        ours = sampler.select_batch(model=model, already_selected=[1, 2], N=10, labeled={}, y=None)
        assert ours == peers.Google(x).select_batch(None, [1, 2], 10)
        assert ("not fitted yet" in caplog.text) == isinstance(model, Unfitted)
        assert (sampler.name, sampler.n_obs, sampler.to_dict()) == ("kcenter", 100, None)

    def test_a_model_transforms(self):
        x = rows(100, 48).reshape(100, 4, 4, 3)
        ours = google.kCenterGreedy(x, None, 0).select_batch_(Doubling(), [1, 2], 10)
        assert ours == peers.Google(x).select_batch(Doubling(), [1, 2], 10)

    def test_a_loop_of_batches(self):
        x = rows(400, 8)
        for model in (None, Doubling()):
            sampler, selected = google.kCenterGreedy(x, None, 0), [0]
            for _ in range(5):
                selected += sampler.select_batch_(model, selected, 7)
            assert selected == [0, *peers.Google(x).select_batch(model, [0], 35)]
            theirs, again = peers.Google(x), [0]
            for _ in range(5):
                again = again + theirs.select_batch(model, again, 7)
            assert again == selected

    def test_without_a_model_earlier_picks_stay_centers(self):
        x = rows(400, 8)
        sampler = google.kCenterGreedy(x, None, 0)
        first = sampler.select_batch_(None, [0], 7)
        assert first + sampler.select_batch_(None, [], 7) == peers.Google(x).select_batch(None, [0], 14)

    @pytest.mark.parametrize(
        "make", [set, tuple, iter, np.array, torch.tensor, lambda rows: np.array(rows, dtype=np.uint8)]
    )
    def test_already_selected_may_be_any_iterable_of_row_numbers(self, make):
        x = rows(100, 8)
        wanted = google.kCenterGreedy(x, None, 0).select_batch_(None, [3, 40, 7], 9)
        assert google.kCenterGreedy(x, None, 0).select_batch_(None, make([3, 40, 7]), 9) == wanted

    @pytest.mark.parametrize("wrong", [np.arange(100) < 4, [True], [1.5], np.array([1.0]), None, ["1"]])
    def test_already_selected_holds_row_numbers(self, wrong):
        with pytest.raises(TypeError, match="already_selected: expected row numbers: "):
            google.kCenterGreedy(rows(100, 8), None, 0).select_batch_(None, wrong, 1)

    def test_more_than_there_are(self):
        with pytest.raises(ValueError, match="k: expected 0 to 3, the rows that are not centers, got 4"):
            google.kCenterGreedy(rows(5, 2), None, 0).select_batch_(None, [0, 1], 4)


class Dataset:
    def __init__(self, x, labelled):
        self.x, self.n_pool, self.labeled_idxs = x, len(x), labelled

    def get_train_data(self):
        return self.labeled_idxs.copy(), self.x


class Net:
    def get_embeddings(self, data):
        return torch.from_numpy(data)


class Schedule:
    """What DiverseEvol's base class offers to a query."""

    def __init__(self, x, labelled, whiten_n_components=-1):
        self.x, self.labeled_idx, self.n_pool = x, torch.from_numpy(labelled), len(x)
        self.whiten_n_components = whiten_n_components
        self.asked = []

    def get_embeddings_all_data(self, rd, use_model_path):
        self.asked.append((rd, use_model_path))
        return list(torch.from_numpy(self.x))


class Sampling(upstream.KCenterSampling, Schedule):
    pass


def masked(n, m):
    labelled = np.zeros(n, dtype=bool)
    labelled[np.random.default_rng(n).permutation(n)[:m]] = True
    return labelled


@pytest.mark.parametrize(("n", "d", "m", "k"), SIZES)
def test_deepal_set(n, d, m, k):
    x, labelled = rows(n, d), masked(n, m)
    dataset = Dataset(x, labelled)
    ours = deepal.KCenterGreedy(dataset, Net()).query(k)
    theirs = peers.reference_formula(x, np.flatnonzero(labelled).tolist(), k)
    assert ours.dtype == np.int64
    assert (dataset.labeled_idxs == masked(n, m)).all()
    assert ours.tolist() == sorted(theirs) or peers.ties(x, np.flatnonzero(labelled), theirs) > 0


def test_deepal_query_under_its_own_class():
    class Theirs:
        def __init__(self, dataset, net):
            self.dataset, self.net = dataset, net

        def get_embeddings(self, data):
            return self.net.get_embeddings(data) + 0

    Theirs.query = deepal.KCenterGreedy.query
    x, labelled = rows(300, 8), masked(300, 9)
    ours = Theirs(Dataset(x, labelled), Net()).query(12)
    assert ours.tolist() == deepal.KCenterGreedy(Dataset(x, labelled), Net()).query(12).tolist()


def test_deepal_without_labels():
    with pytest.raises(ValueError, match=r"no row is labelled yet; call dataset\.initialize_labels"):
        deepal.KCenterGreedy(Dataset(rows(5, 2), np.zeros(5, dtype=bool)), Net()).query(1)


def test_deepal_with_labels_of_other_rows():
    with pytest.raises(ValueError, match=r"labelled: expected a mask of shape \(5,\), got \(4,\)"):
        deepal.KCenterGreedy(Dataset(rows(5, 2), np.ones(4, dtype=bool)), Net()).query(1)


@pytest.mark.parametrize(("n", "d", "m", "k"), SIZES)
def test_upstream_set(n, d, m, k):
    x, labelled = rows(n, d), masked(n, m)
    schedule = Sampling(x.copy(), labelled)
    ours = schedule.query(rd=3, n=k, use_model_path="output/rd_3")
    theirs = peers.reference_formula(x, np.flatnonzero(labelled).tolist(), k)
    assert ours.dtype == torch.int64
    assert ours.device.type == "cpu"
    assert ours.tolist() == sorted(theirs) or peers.ties(x, np.flatnonzero(labelled), theirs) > 0
    assert schedule.asked == [(3, "output/rd_3")]
    assert (schedule.x == x).all()
    assert (schedule.labeled_idx.numpy() == masked(n, m)).all()


def test_upstream_whitens():
    x, labelled = rows(300, 16) @ np.diag(np.arange(1, 17)).astype(np.float32), masked(300, 10)
    centered = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(np.cov(x.astype(np.float64).T))  # its covariance is over N - 1: a common factor
    unit = centered @ (u[:, :4] / np.sqrt(s[:4]))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    ours = Sampling(x, labelled, whiten_n_components=4).query(0, 20, "")
    wanted = reference.kcenter(torch.from_numpy(unit), 20, np.flatnonzero(labelled).tolist())[0]
    assert ours.tolist() == sorted(wanted)


def test_near_duplicates_are_nan_there_and_not_here():
    """Rows that differ in their last bits have a negative squared distance in the matrix formula."""
    rng = np.random.default_rng(0)
    x = 10 + rng.standard_normal((400, 64)).astype(np.float32)
    labelled = masked(400, 20)
    x[:200] = x[labelled][0] * (1 + 1e-7 * rng.standard_normal((200, 64)).astype(np.float32))
    gram = torch.from_numpy(x) @ torch.from_numpy(x).T
    squared = gram.diagonal()[:, None] + gram.diagonal()[None] - 2 * gram
    assert squared.sqrt().isnan().any()
    theirs = peers.reference_formula(x, np.flatnonzero(labelled).tolist(), 30)
    ours = Sampling(x, labelled).query(0, 30, "").tolist()
    wanted = reference.kcenter(torch.from_numpy(x), 30, np.flatnonzero(labelled).tolist())[0]
    assert ours == sorted(wanted) == deepal.KCenterGreedy(Dataset(x, labelled), Net()).query(30).tolist()
    assert sum(pick < 200 for pick in theirs) > 10
    assert all(pick >= 200 for pick in ours)


def test_upstream_refuses_an_empty_pool():
    with pytest.raises(ValueError, match="the pool is empty; call initialize_labeled_data first"):
        Sampling(rows(5, 2), np.zeros(5, dtype=bool)).query(0, 1, "")
    schedule = Sampling(rows(5, 2), masked(5, 2))
    schedule.n_pool = 6
    with pytest.raises(ValueError, match="labeled_idx: expected n_pool = 6 entries, got 5"):
        schedule.query(0, 1, "")


def test_upstream_patch(monkeypatch):
    class KCenterSampling(Schedule):
        def query(self, rd, n, use_model_path):
            raise AssertionError("the old one")

    monkeypatch.setitem(sys.modules, "evol_schedules", types.SimpleNamespace(KCenterSampling=KCenterSampling))
    upstream.patch()
    x, labelled = rows(300, 8), masked(300, 9)
    assert KCenterSampling(x, labelled).query(0, 12, "").tolist() == Sampling(x, labelled).query(0, 12, "").tolist()


def test_upstream_patch_says_what_it_cannot_find(tmp_path, monkeypatch):
    with pytest.raises(ImportError, match="call patch\\(\\) from DiverseEvol's folder"):
        upstream.patch()
    with pytest.raises(TypeError, match="expected a class with query and get_embeddings_all_data"):
        upstream.patch(Dataset)
    (tmp_path / "evol_schedules.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        upstream.patch()


class TestAnomalibAlone:
    """Without anomalib; test_anomalib.py compares with the real one."""

    @pytest.mark.parametrize("shape", [(500, 8), (500, 4, 6), (1, 8)])
    def test_coreset(self, shape):
        x = torch.from_numpy(rows(shape[0], int(np.prod(shape[1:])))).reshape(shape)
        torch.manual_seed(0)
        np.random.seed(0)
        ours = anomalib.KCenterGreedy(x, 0.1 if len(x) > 1 else 1)
        picks = ours.select_coreset_idxs()
        assert len(picks) == len(set(picks)) == ours.coreset_size == max(1, len(x) // 10)
        torch.manual_seed(0)
        np.random.seed(0)
        assert (ours.sample_coreset() == x[picks]).all()
        torch.manual_seed(0)
        np.random.seed(0)
        features = x.flatten(1) @ anomalib.projection(*x.shape).T if x.ndim == 2 else x.flatten(1)
        first = int(torch.randint(len(x), (1,)))
        assert picks == [first, *peers.anomalib_loop(features, [first], len(picks) - 1)]

    @pytest.mark.parametrize("ratio", [0, 0.0001, -1, 1.5, float("nan"), "0.5", None])
    def test_a_share_of_no_rows_or_more_than_all(self, ratio):
        with pytest.raises(ValueError, match=f"sampling_ratio: expected a share of 100 rows .* got {ratio!r}"):
            anomalib.KCenterGreedy(torch.zeros(100, 2), ratio)

    def test_an_embedding_is_a_tensor(self):
        with pytest.raises(TypeError, match="embedding: expected a tensor, got ndarray"):
            anomalib.KCenterGreedy(rows(10, 2), 0.5)

    def test_equal_rows_are_picked_once_each(self):
        picks = anomalib.KCenterGreedy(torch.ones(20, 2, 2), 0.5).select_coreset_idxs()
        assert len(set(picks)) == 10

    @pytest.mark.parametrize("start", [anomalib.OLDEST, anomalib.OLDER])
    def test_the_first_row_is_only_a_center_in_older_versions(self, start):
        x = torch.from_numpy(rows(300, 8))
        torch.manual_seed(0)
        picks = anomalib._coreset(x, 30, start)
        torch.manual_seed(0)
        assert picks == peers.anomalib_loop(x, [int(torch.randint(300, (1,)))], 30)

    def test_all_rows_where_the_first_is_only_a_center(self):
        x = torch.from_numpy(rows(30, 4))
        assert sorted(anomalib._coreset(x, 30, anomalib.OLDER)) == list(range(30))

    def test_an_unknown_version_is_not_patched(self, monkeypatch):
        monkeypatch.setattr("importlib.metadata.version", lambda _: "2.99.0")
        with pytest.raises(
            ImportError, match=r"anomalib 2\.99\.0: not a version whose coreset is known .*left as it is"
        ):
            anomalib.patch()

    def test_nothing_to_patch(self):
        if "anomalib" in sys.modules:
            pytest.skip("anomalib is installed here")
        with pytest.raises(ImportError, match="anomalib: not installed"):
            anomalib.patch()
