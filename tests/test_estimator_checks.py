"""scikit-learn's own checks of every estimator, none expected to fail."""

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbdc import ConformalClassifier, LaplaceHead
from cbdc.conformal import (
    ConditionalConformalClassifier,
    ConformalBayesClassifier,
    ConformalTriage,
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    MalignancyClassifier,
    MonteCarloConformalClassifier,
    OnlineConformalClassifier,
    SyntheticPoweredConformalClassifier,
)
from cbdc.heads import (
    HEADS,
    DirichletHead,
    DropoutHead,
    EnsembleHead,
    LinearizedLaplaceHead,
    NUTSHead,
    PooledHead,
    RandomFeatureGPHead,
    SWAGHead,
    TemperatureScaling,
    VariationalHead,
    VectorScaling,
    VennAbersCalibrator,
)
from cbdc.topology import ConformalStabilityBound

ESTIMATORS = [
    LaplaceHead(),
    ConformalStabilityBound(),
    NUTSHead(n_chains=1, n_draws=8, n_warmup=4, thinning=1, max_tree_depth=3),
    VariationalHead(max_iter=4, n_draws=8),
    DirichletHead(),
    DropoutHead(hidden_layer_size=32, n_steps=200, n_draws=8),
    EnsembleHead(n_members=8),
    LinearizedLaplaceHead(hidden_layer_sizes=(4,), max_iter=20, n_draws=16),
    PooledHead([DropoutHead(16, n_steps=100, n_draws=8), DropoutHead(16, n_steps=100), RandomFeatureGPHead(64)]),
    RandomFeatureGPHead(n_features=64),
    SWAGHead(n_iterates=20, n_draws=16),
    ConformalClassifier(LogisticRegression()),
    ConformalClassifier(LogisticRegression(), score="aps", condition_on="class", random_state=0),
    ConformalClassifier(LaplaceHead(random_state=0)),
    ConformalClassifier(LogisticRegression(), score="raps", guarantee="pac", repeated="one"),
    ConformalBayesClassifier(LaplaceHead(1.0), n_draws=50),
    ConformalBayesClassifier(LaplaceHead(1.0), condition_on="class", n_draws=50, fallback=None),
    *(kind(LogisticRegression(), cv=2) for kind in (TemperatureScaling, VectorScaling, VennAbersCalibrator)),
    *(
        kind(LogisticRegression())
        for kind in (
            ConditionalConformalClassifier,
            ConformalTriage,
            CovariateShiftConformalClassifier,
            LabelShiftConformalClassifier,
            MalignancyClassifier,
            MonteCarloConformalClassifier,
            OnlineConformalClassifier,
            SyntheticPoweredConformalClassifier,
        )
    ),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:the evidence lower bound still rose")  # heads with few steps, to be quick
@pytest.mark.filterwarnings("ignore:bad chains")
@parametrize_with_checks(ESTIMATORS)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_every_head_is_checked():
    assert set(HEADS.values()) <= {type(estimator) for estimator in ESTIMATORS}
