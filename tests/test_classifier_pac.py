"""PAC guarantees through the whole path: fit, calibrate, report, save and load."""

import pytest

from cbdc import CBDCClassifier, make_lesions, metrics
from cbdc.conformal import Certificate, pac_rank
from cbdc.errors import ParameterError
from cbdc.report import evaluate, write_report


@pytest.fixture(scope="module")
def parts():
    prior = {"nv": 0.6, "mel": 0.4}
    return make_lesions(300, image_size=64, class_prior=prior, random_state=0).split(random_state=0)


def test_pac_travels_with_the_model(parts, tmp_path):
    train, calibration, test = parts
    clf = CBDCClassifier(condition_on=None, score="raps", guarantee="pac", confidence_level=0.8, random_state=0)
    clf.fit(train).conformalize(calibration)
    certificate = clf.certificate()
    n = certificate.n_calibration
    assert [c.rank for c in certificate.conditions] == [pac_rank(n, 0.8, 0.05)]
    assert "each drawn from a patient or lesion of its own" in str(certificate)
    assert "several calibration cases" not in str(certificate)
    assert {"training_data", "calibration_data", "embedder", "calibration_scores_sha256"} <= set(certificate.hashes)
    again = CBDCClassifier.load(clf.save(tmp_path / "model.cbdc"))
    assert again.certificate() == certificate
    assert again.guarantee == "pac"
    evaluation = evaluate(again, test, random_state=0)
    model = evaluation.figures["model"]
    assert Certificate.from_dict(model["certificate"]) == certificate
    assert "with probability at least 0.95 over the calibration cases" in model["guarantee"]
    assert "with probability at least 0.95" in write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    row = evaluation.figures["sets"]["0.8"]
    assert str(certificate) in str(again.diagnose(test.images[0]))
    low, high = metrics.coverage_band(n, row["coverage"]["n"], 0.8, probability=0.95, ranks=pac_rank(n, 0.8, 0.05))
    assert row["band"] == pytest.approx([low, high])


def test_clusters_are_refused_before_anything_is_embedded(parts):
    with pytest.raises(ParameterError, match="tune"):
        CBDCClassifier(condition_on="cluster").fit(parts[0])
