"""Each guarantee against a truth that is known: many calibrations, small and large, with ties, and a rare class.

The classifier is never right: probabilities are sharpened, so that only calibration can give the coverage. What is
compared is exact but for the number of replications: a rate of violations with the binomial law at the promised rate,
and a mean coverage, whose replications are independent, with its standard error. ``pytest -m
slow -s`` prints every figure.
"""

import numpy as np
import pytest
from scipy import special, stats

from cbdc import ConformalClassifier
from cbdc.conformal import (
    ConditionalConformalClassifier,
    ConformalOutlierDetector,
    ConformalTriage,
    CovariateShiftConformalClassifier,
    DriftMonitor,
    LabelShiftConformalClassifier,
    MalignancyClassifier,
    MonteCarloConformalClassifier,
    OnlineConformalClassifier,
    SyntheticPoweredConformalClassifier,
    crc_index,
    guard_ranks,
    ltt_indices,
    rcps_index,
    risk_p_values,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")]

CHANCE = 1e-4  # of a false alarm of one check, were a guarantee kept with equality


def truth(rng, n, n_classes, *, ties=False, sharpness=1.6):
    """What the classifier says, the classes, and the true probabilities; the last class is rare."""
    logits = rng.standard_normal((n, n_classes)) * 1.5
    logits[:, -1] -= 2
    true = special.softmax(logits, axis=1)
    said = special.softmax(sharpness * logits, axis=1)
    if ties:  # votes of 30
        votes = np.floor(said * 30)
        votes[np.arange(n), said.argmax(axis=1)] += 30 - votes.sum(axis=1)
        said = votes / 30
    y = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, n_classes - 1)
    return said, y, true


def at_least(what, values, bound):
    """Mean of independent replications against a lower bound."""
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values))
    figure = f"{what}: {values.mean():.4f} +- {error:.4f}, promised at least {bound:.4f}"
    print(figure)
    assert values.mean() >= bound + stats.norm.ppf(CHANCE) * error - 1e-12, figure


def at_most(what, values, bound):
    at_least(f"{what} (negative)", -np.asarray(values, dtype=float), -bound)


def seldom(what, violations, delta):
    """Rate of violations, each of one replication, against delta."""
    count, n = int(np.sum(violations)), len(violations)
    figure = f"{what}: violated in {count} of {n} replications ({count / n:.4f}), allowed {delta:g}"
    print(figure)
    assert count <= stats.binom.ppf(1 - CHANCE, n, delta), figure


def covered(sets, true):
    """Coverage of the sets, the class averaged out."""
    return (sets * true).sum(axis=1)


SIZES = pytest.mark.parametrize(("n", "n_classes", "ties"), [(30, 2, True), (300, 2, False), (60, 40, False)])


@SIZES
@pytest.mark.parametrize("score", ["lac", "aps"])
def test_pac_thresholds(n, n_classes, ties, score):
    replications = 400
    rng = np.random.default_rng(1)
    below = []
    new, _, true = truth(rng, 20_000, n_classes, ties=ties)
    for _ in range(replications):
        P, y, _ = truth(rng, n, n_classes, ties=ties)
        clf = ConformalClassifier(score=score, guarantee="pac", delta=0.1).conformalize(P, y)
        below.append(covered(clf.predict_set(new), true).mean() < 0.9)
    seldom(f"pac, {score}, n={n}, K={n_classes}, ties={ties}", below, 0.1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("repeated", ["hierarchical", "one"])
def test_patients(ties, repeated):
    """A random case of a new patient; patients with more cases are harder."""
    replications = 500
    rng = np.random.default_rng(2)
    found = []

    def patients(m):
        hard = rng.integers(0, 2, m)
        sizes = np.where(hard, 8, 1)
        units = np.repeat(np.arange(m), sizes)
        logits = rng.standard_normal((len(units), 3)) + 1.5 * rng.standard_normal((m, 3))[units]
        true = special.softmax(np.where(hard, 0.3, 2)[units][:, None] * logits, axis=1)
        P = np.round(
            special.softmax(logits, axis=1) * 20 if ties else special.softmax(logits, axis=1), 0 if ties else 9
        )
        P = (P + 1e-9) / (P + 1e-9).sum(axis=1, keepdims=True)
        y = (true.cumsum(axis=1) < rng.random((len(units), 1))).sum(axis=1).clip(0, 2)
        return P, y, units, true

    for _ in range(replications):
        P, y, units, _ = patients(40)
        clf = ConformalClassifier(repeated=repeated).conformalize(P, y, units=units)
        new, _, of, true = patients(60)
        by_case = covered(clf.predict_set(new), true)
        found.append(np.mean(np.bincount(of, by_case) / np.bincount(of)))
    at_least(f"patients, {repeated}, 40 of them, ties={ties}", found, 0.9)


@pytest.mark.parametrize(("n", "ties"), [(80, True), (80, False), (400, False)])
def test_conditional_coverage(n, ties):
    """Two attributes that overlap and a group of one in twenty, the classifier being worse in some."""
    rng = np.random.default_rng(3)
    replications = 150 if n < 100 else 60
    inside = {name: [] for name in ("all", "a", "b", "rare")}
    for _ in range(replications):

        def draw(m):
            groups = rng.random((m, 3)) < [0.5, 0.3, 0.05]
            logits = 2 * rng.standard_normal((m, 2))
            true = special.softmax(logits * np.where(groups[:, [0]], 0.3, 1) * np.where(groups[:, [2]], 0.1, 1), axis=1)
            said = special.softmax(logits, axis=1)
            if ties:
                first = np.round(said[:, 0], 1)
                said = np.stack([first, 1 - first], axis=1)
            return said, (rng.random(m) > true[:, 0]).astype(int), true, groups

        P, y, _, groups = draw(n)
        clf = ConditionalConformalClassifier().conformalize(P, y, groups)
        new, _, true, of = draw(60)
        by_case = covered(clf.predict_set(new, of), true)
        for name, rows in zip(inside, [np.ones(60, dtype=bool), *of.T]):
            inside[name].append((by_case[rows].sum(), rows.sum()))
    for name, pairs in inside.items():
        sums, counts = np.array(pairs).T  # a ratio: linearised, its replications are independent
        rate = sums.sum() / counts.sum()
        at_least(f"conditional, group {name}, n={n}, ties={ties}", rate + (sums - rate * counts) / counts.mean(), 0.9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [100, 1000])
def test_triage(n, ties):
    replications = 1000
    rng = np.random.default_rng(4)

    def draw(m):
        true = special.expit(-2 + 2 * rng.standard_normal(m))
        said = special.expit(1.5 * special.logit(true) + 0.3)
        return np.round(said * 30) / 30 if ties else said, true

    said, true = draw(100_000)
    wrong = []
    for _ in range(replications):
        p, risk = draw(n)
        y = (rng.random(n) < risk).astype(int)
        triage = ConformalTriage(malignant=[1], npv=0.95, ppv=0.7, delta=0.1).conformalize(np.stack([1 - p, p], 1), y)
        released, urgent = said <= triage.release_threshold_, said >= triage.urgent_threshold_
        npv = (1 - true[released]).mean() if released.any() else 1.0
        ppv = true[urgent].mean() if urgent.any() else 1.0
        wrong.append(npv < 0.95 or ppv < 0.7)
    seldom(f"triage, n={n}, ties={ties}", wrong, 0.1)


@pytest.mark.parametrize("method", ["crc", "rcps"])
@pytest.mark.parametrize("ties", [False, True])
def test_malignancy_flags(method, ties):
    replications = 1000
    rng = np.random.default_rng(5)

    def draw(m):
        p = rng.beta(2, 2, m)
        p = np.round(p * 20) / 20 if ties else p
        return np.stack([1 - p, p], axis=1)

    new, missed = draw(50_000), []
    for _ in range(replications):
        clf = MalignancyClassifier(malignant=[1], method=method, risk_level=0.1, delta=0.1)
        missed.append(np.mean(~clf.conformalize(draw(60), np.ones(60, dtype=int)).flag(new)))
    if method == "crc":
        at_most(f"malignancy, crc, n=60, ties={ties}, missed", missed, 0.1)
    else:
        seldom(f"malignancy, rcps, n=60, ties={ties}", np.array(missed) > 0.1, 0.1)


@pytest.mark.parametrize(("n", "ties"), [(50, False), (50, True), (500, False)])
def test_covariate_shift_with_known_weights(n, ties):
    replications = 400
    rng = np.random.default_rng(6)
    found = []

    def draw(m, shift):
        x = np.round(rng.standard_normal(m) * 2 + shift) / 2 if ties else rng.standard_normal(m) + shift / 2
        true = special.expit(2 * np.sin(3 * x))
        said = special.expit(x)
        return np.stack([said, 1 - said], axis=1), np.stack([true, 1 - true], axis=1)

    def weigh(P):
        x = special.logit(P[:, 0])
        if not ties:
            return np.exp(x - 0.5)  # of normal laws with means 0 and 1
        edges = 2 * x[:, None] + [-0.5, 0.5]  # rounded: each place has the mass of its interval
        return np.diff(stats.norm.cdf((edges - 2) / 2))[:, 0] / np.diff(stats.norm.cdf(edges / 2))[:, 0]

    for _ in range(replications):
        P, true = draw(n, 0)
        y = (rng.random(n) > true[:, 0]).astype(int)
        clf = CovariateShiftConformalClassifier().conformalize(P, y, weights=weigh)
        new, true = draw(100, 2)
        found.append(covered(clf.predict_set(new), true).mean())
    at_least(f"covariate shift, known weights, n={n}, ties={ties}", found, 0.9)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("n", "n_classes", "ties"), [(40, 2, True), (400, 2, False), (400, 40, False)])
def test_label_shift_with_known_prevalence(n, n_classes, ties, known):
    """The last class is four times as frequent in the target; each class's images stay as they are."""
    replications = 400
    rng = np.random.default_rng(7)
    source = np.full(n_classes, 1.0)
    source[-1] = 0.3
    target = source.copy()
    target[-1] *= 4
    source, target = source / source.sum(), target / target.sum()
    slack = []
    found = []

    def draw(m, prevalence):
        y = rng.choice(n_classes, m, p=prevalence)
        logits = rng.standard_normal((m, n_classes)) * 2 + 3 * np.eye(n_classes)[y]
        said = special.softmax(logits, axis=1)
        if ties:
            said = np.round(said * 10) / 10
        return said / said.sum(axis=1, keepdims=True), y

    for _ in range(replications):
        P, y = draw(n, source)
        if not known and np.bincount(y, minlength=n_classes).min() == 0:
            continue  # refused: a class of the target without a calibration case
        clf = LabelShiftConformalClassifier().conformalize(P, y, source if known else None).adapt(prevalence=target)
        new, truths = draw(100, target)
        found.append(clf.predict_set(new)[np.arange(100), truths].mean())
        slack.append(clf.coverage_loss_)
    shares = "known" if known else "of the cases"
    at_least(f"label shift, n={n}, K={n_classes}, ties={ties}, source {shares}", np.add(found, slack), 0.9)
    if known:
        assert not np.any(slack)


@pytest.mark.parametrize("n_draws", [None, 3])
@SIZES
def test_ambiguous_labels(n, n_classes, ties, n_draws):
    replications = 400
    rng = np.random.default_rng(8)
    found = []
    for _ in range(replications):
        P, _, true = truth(rng, n, n_classes, ties=ties)
        clf = MonteCarloConformalClassifier(n_draws=n_draws, random_state=int(rng.integers(2**31)))
        clf.conformalize(P, true)
        new, _, true = truth(rng, 100, n_classes, ties=ties)
        found.append(covered(clf.predict_set(new), true).mean())
    at_least(f"ambiguous, n_draws={n_draws}, n={n}, K={n_classes}, ties={ties}", found, 0.9)


@pytest.mark.parametrize("like", [True, False])
@pytest.mark.parametrize("ties", [False, True])
def test_synthetic_power(like, ties):
    replications = 600
    rng = np.random.default_rng(9)
    found = []
    for _ in range(replications):
        P, y, _ = truth(rng, 25, 3, ties=ties)
        other = truth(rng, 300, 3, ties=ties, sharpness=1.6 if like else 0.4)
        clf = SyntheticPoweredConformalClassifier().conformalize(P, y, source=other[:2])
        new, _, true = truth(rng, 100, 3, ties=ties)
        found.append(covered(clf.predict_set(new), true).mean())
    low, high = guard_ranks(25, 300, 0.9)
    at_least(f"synthetic, source like={like}, ties={ties}", found, low / 26)
    if not ties:
        at_most(f"synthetic, source like={like}", found, high / 26)


@pytest.mark.parametrize("ties", [False, True])
def test_expanding_stream(ties):
    """Misses are independent, each of a probability that the ranks give: fewer where scores tie."""
    replications = 300
    rng = np.random.default_rng(10)
    misses, T = [], 60
    for _ in range(replications):
        P, y, _ = truth(rng, 20 + T, 3, ties=ties)
        clf = OnlineConformalClassifier().conformalize(P[:20], y[:20])
        for i in range(20, 20 + T):
            clf.predict_set(P[i : i + 1])
            clf.partial_conformalize(P[i : i + 1], y[i : i + 1])
        misses.append(clf.n_missed_ / T)
    at_most(f"stream, expanding, ties={ties}, misses", misses, 0.1)


@pytest.mark.parametrize("method", ["aci", "pid"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("delay", [0, 7])
def test_adaptive_streams_keep_their_bound_whatever_comes(method, ties, delay):
    replications = 25
    rng = np.random.default_rng(11)
    worst = -np.inf
    for replication in range(replications):
        T = 150
        P, y, _ = truth(rng, 10 + T, 3, ties=ties)
        kind = replication % 4
        if kind == 1:  # the least probable class from the middle on
            y[80:] = P[80:].argmin(axis=1)
        elif kind == 2:  # never
            y[10:] = P[10:].argmax(axis=1)
        clf = OnlineConformalClassifier(method=method, gamma=0.05).conformalize(P[:10], y[:10])
        for i in range(10, 10 + T):
            sets = clf.predict_set(P[i : i + 1])[0]
            if kind == 3 and not sets.all():  # an opponent who sees the set
                y[i] = np.flatnonzero(~sets)[0]
            if (j := i - delay) >= 10:
                clf.partial_conformalize(P[j : j + 1], y[j : j + 1])
                gap = abs(clf.n_missed_ / clf.n_seen_ - 0.1)
                worst = max(worst, gap - clf.long_run_bound())
                assert gap <= clf.long_run_bound() + 1e-9
    print(f"stream, {method}, delay={delay}, ties={ties}: bound less gap is at least {-worst:.4f} at any time")


@pytest.mark.parametrize("betting", ["jumper", "power"])
@pytest.mark.parametrize("ties", [False, True])
def test_false_drift_alarms(betting, ties):
    replications = 400
    rng = np.random.default_rng(12)
    alarms = []
    for seed in range(replications):
        scores = rng.integers(0, 5, 300) if ties else rng.random(300)
        monitor = DriftMonitor(alpha=0.1, betting=betting, random_state=seed)
        alarms.append(monitor.update_scores(scores).alarm_)
    seldom(f"drift, {betting}, ties={ties}, 300 cases", alarms, 0.1)


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("binary", [True, False])
def test_risk_control(n, binary):
    """Losses at 40 settings: for CRC and RCPS they fall, for LTT they rise, so that it stops at the boundary."""
    replications = 1000
    rng = np.random.default_rng(13)
    limits = np.linspace(0, 1, 40)

    def losses(m):
        u = rng.random((m, 1))
        return (u > limits).astype(float) if binary else np.clip(u - limits, 0, 1)

    risk = 1 - limits if binary else (1 - limits) ** 2 / 2
    risk = np.append(risk, 0.0)
    crc, rcps, ltt = [], [], []
    for _ in range(replications):
        L = losses(n)
        crc.append(risk[crc_index(L, 0.1)])
        rcps.append(risk[rcps_index(L, 0.1, 0.1)] > 0.1)
        certified = ltt_indices(risk_p_values(L[:, ::-1], 0.1), 0.1, starts=3)
        ltt.append((risk[:-1][::-1][certified] > 0.1).any())
    at_most(f"risk, crc, n={n}, binary={binary}", crc, 0.1)
    seldom(f"risk, rcps, n={n}, binary={binary}", rcps, 0.1)
    seldom(f"risk, ltt, n={n}, binary={binary}", ltt, 0.1)


@pytest.mark.parametrize("ties", [False, True])
def test_outliers(ties):
    """False alarms of one image at a time, and the false discoveries of a batch with a third of outliers."""
    replications = 300
    rng = np.random.default_rng(14)
    alarms, false = [], []
    for _ in range(replications):
        E = rng.standard_normal((140, 2))
        E = np.round(E, 1) if ties else E
        detector = ConformalOutlierDetector("mahalanobis", alpha=0.1).fit(E[:40]).conformalize(E[40:100])
        alarms.append(np.mean(detector.predict(E[100:]) == -1))
        found = detector.discoveries(np.concatenate([E[100:], E[100:120] + 3]), fdr=0.2)
        false.append(found[:40].sum() / max(found.sum(), 1))
    at_most(f"outliers, ties={ties}, false alarms", alarms, 0.1)
    at_most(f"outliers, ties={ties}, false discoveries", false, 0.2 * 40 / 60)
