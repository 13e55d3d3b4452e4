"""How good frozen features and probabilities are."""

from contrastive_core.evaluation.calibration import IsotonicScaler, TemperatureScaler, expected_calibration_error
from contrastive_core.evaluation.probes import ProbeKind, ProbeResult, fit_probe, probe

__all__ = [
    "IsotonicScaler",
    "ProbeKind",
    "ProbeResult",
    "TemperatureScaler",
    "expected_calibration_error",
    "fit_probe",
    "probe",
]
