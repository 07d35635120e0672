"""Measurements are stored and repeated only for another model."""

from captioning.comparison.measurements import _stored


def test_a_measurement_is_stored_for_its_key(tmp_path):
    calls = []

    def measure():
        calls.append(None)
        return {"ms": len(calls)}

    file = tmp_path / "costs.json"
    assert _stored(file, "model 1", measure) == {"ms": 1}
    assert _stored(file, "model 1", measure) == {"ms": 1}
    assert _stored(file, "model 2", measure) == {"ms": 2}
    assert _stored(file, "model 1", measure) == {"ms": 3}
