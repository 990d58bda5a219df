import pytest

from flower_psl.split.device_memory import DeviceMemory
from flower_psl.split.report import Finding, FindingKind, SplitReport


def report(
    loss: float = 1e-12,
    gradient: float = 1e-12,
    weight: float = 1e-9,
    held: tuple[str, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> SplitReport:
    return SplitReport(
        loss_difference=loss,
        gradient_difference=gradient,
        weight_difference=weight,
        activation_shape=(8, 4, 4),
        activation_bytes_per_example=512,
        memory=DeviceMemory(
            parameter_bytes=4800, buffer_bytes=0, gradient_bytes=4800, bytes_per_example=2_345_678
        ),
        client_parameters=1200,
        server_parameters=34000,
        client_flops_per_example=1_234_567,
        server_flops_per_example=890,
        held_in_evaluation=held,
        findings=findings,
    )


def test_bounds_are_included() -> None:
    assert report().passed


@pytest.mark.parametrize("value", [1.1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "gradient", "weight"])
def test_each_difference_counts(name: str, value: float) -> None:
    match name:
        case "loss":
            failed = report(loss=value)
        case "gradient":
            failed = report(gradient=value)
        case _:
            failed = report(weight=value)
    assert not failed.passed
    assert str(failed).startswith("FAILED: relative difference from the uncut model (float64)")


def test_the_text_groups_findings_by_what_they_say() -> None:
    layers = [
        Finding(
            kind=FindingKind.BATCH_NORM, segment="client", module=f"bn{i}", message="Normalizes."
        )
        for i in range(5)
    ]
    frozen = Finding(kind=FindingKind.FROZEN, segment="client", module="", message="Is frozen.")
    held = tuple(layer.module for layer in layers[:2])
    assert str(report(held=held, findings=(*layers, frozen))).splitlines() == [
        "passed: relative difference from the uncut model (float64): loss 1.0e-12, gradients "
        "1.0e-12, weights after one step 1.0e-09",
        "client 1,200 parameters, server 34,000 parameters",
        "activations (8, 4, 4): 512 bytes an example travel each way",
        "a device holds 9.6 kB (parameters, gradients, buffers) + 2.35 MB an example",
        "a device computes 1.23 MFLOP an example, the server 890 FLOP",
        "compared in evaluation mode: bn0, bn1",
        "batch_norm: bn0, bn1, bn2 and 2 more: Normalizes.",
        "frozen: the client segment: Is frozen.",
    ]


def test_the_whole_model_is_named_as_such() -> None:
    assert "compared in evaluation mode: the whole model" in str(report(held=("",)))
