"""scikit-learn's own checks of every estimator, none expected to fail."""

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from cbdc import ConformalClassifier, LaplaceHead

ESTIMATORS = [
    LaplaceHead(),
    ConformalClassifier(LogisticRegression()),
    ConformalClassifier(LogisticRegression(), score="aps", condition_on="class", random_state=0),
    ConformalClassifier(LaplaceHead(random_state=0)),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS)
def test_estimator_checks(estimator, check):
    check(estimator)
