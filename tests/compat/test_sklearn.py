"""KCenterSelector against scikit-learn's own checks, and in what its users do with an estimator."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.utils.estimator_checks import parametrize_with_checks

from diverseevol_fast import kcenter
from diverseevol_fast.compat.sklearn import KCenterSelector


def not_applicable(estimator):
    """A row of zeros, which this check has, has no direction."""
    return {"check_estimators_dtypes": "rows of zeros"} if estimator.metric == "cosine" else {}


@parametrize_with_checks(
    [KCenterSelector(), KCenterSelector(3), KCenterSelector(metric="cosine")],
    expected_failed_checks=not_applicable,
    xfail_strict=True,
)
def test_estimator_checks(estimator, check):
    check(estimator)


def rows(n=200, d=8):
    return np.random.default_rng(0).standard_normal((n, d))


def test_it_is_kcenter():
    x = rows()
    selector = KCenterSelector(20, random_state=4).fit(x)
    first = int(np.random.RandomState(4).randint(200))
    x = x.astype(np.float32)
    assert selector.sample_indices_.tolist() == [first, *kcenter(x, 19, [first]).indices.tolist()]
    assert selector.sample_indices_.dtype == np.int64
    mask = np.isin(np.arange(200), [3, 5])
    assert KCenterSelector(20).fit(x, selected=mask).sample_indices_.tolist() == kcenter(x, 20, mask).indices.tolist()
    assert (
        KCenterSelector(20).fit(x, selected=[3, 5]).sample_indices_.tolist() == kcenter(x, 20, [3, 5]).indices.tolist()
    )


def test_select_returns_rows_as_they_were_given():
    x, y = rows().tolist(), [f"label {row}" for row in range(200)]
    selector = KCenterSelector(0.05, random_state=0)
    chosen, labels = selector.select(x, y)
    assert chosen == [x[row] for row in selector.sample_indices_]
    assert labels == [y[row] for row in selector.sample_indices_]
    assert len(chosen) == 10
    assert selector.select(np.array(x)).tolist() == chosen
    assert KCenterSelector(1).select(rows(3), selected=[0, 1]).tolist() == rows(3)[[2]].tolist()


def test_data_frames_keep_their_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(), columns=list("abcdefgh"), index=[f"row {row}" for row in range(200)])
    selector = KCenterSelector(5, random_state=0)
    chosen = selector.select(frame)
    assert list(chosen.columns) == selector.feature_names_in_.tolist() == list("abcdefgh")
    assert list(chosen.index) == [f"row {row}" for row in selector.sample_indices_]


def test_it_is_an_estimator():
    selector = KCenterSelector(7, metric="cosine", random_state=1)
    assert clone(selector).get_params() == {"n_samples": 7, "metric": "cosine", "random_state": 1}
    found = [
        clone(selector).set_params(**given).fit(rows()).sample_indices_.tolist()
        for given in ParameterGrid({"metric": ["euclidean", "cosine"]})
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("n", [0, -1, 201, 1.0, 1.5, 0.0, True, "10", None])
def test_how_many(n):
    with pytest.raises(
        ValueError, match="n_samples: expected 1 to 200, or a share between 0 and 1, because X has 200 samples; got"
    ):
        KCenterSelector(n).fit(rows())


def test_a_small_share_is_one_row():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(KCenterSelector(0.001).fit(rows()).sample_indices_) == 1


def test_bad_input_is_named():
    x = rows()
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        KCenterSelector().fit(x)
    with pytest.raises(ValueError, match="metric: expected 'euclidean', 'l2' or 'cosine', got 'manhattan'"):
        KCenterSelector(metric="manhattan").fit(rows())
    with pytest.raises(ValueError, match="selected: expected row numbers from 0 to 199, got 200"):
        KCenterSelector(5).fit(rows(), selected=[200])
