"""scikit-learn's own checks of every estimator, none expected to fail."""

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbdc import ConformalClassifier, LaplaceHead
from cbdc.conformal import (
    ConditionalConformalClassifier,
    ConformalTriage,
    CovariateShiftConformalClassifier,
    LabelShiftConformalClassifier,
    MalignancyClassifier,
    MonteCarloConformalClassifier,
    OnlineConformalClassifier,
    SyntheticPoweredConformalClassifier,
)
from cbdc.heads import DirichletHead, DropoutHead, EnsembleHead, RandomFeatureGPHead, SWAGHead

ESTIMATORS = [
    LaplaceHead(),
    DirichletHead(),
    DropoutHead(hidden_layer_size=32, n_steps=200, n_draws=8),
    EnsembleHead(n_members=8),
    RandomFeatureGPHead(n_features=64),
    SWAGHead(n_iterates=20, n_draws=16),
    ConformalClassifier(LogisticRegression()),
    ConformalClassifier(LogisticRegression(), score="aps", condition_on="class", random_state=0),
    ConformalClassifier(LaplaceHead(random_state=0)),
    ConformalClassifier(LogisticRegression(), score="raps", guarantee="pac", repeated="one"),
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
@parametrize_with_checks(ESTIMATORS)
def test_estimator_checks(estimator, check):
    check(estimator)
