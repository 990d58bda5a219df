from dataclasses import asdict

import pytest

from flower_psl import ConfigError, ProtocolError
from flower_psl.wire.encodings import ENCODINGS, Encodings


def test_everything_is_raw_unless_asked_for() -> None:
    assert asdict(Encodings()) == dict.fromkeys(("activations", "gradients", "weights"), "raw")


def test_the_registry_is_what_people_can_read() -> None:
    assert list(ENCODINGS) == ["raw", "bf16", "fp16", "int8"]


@pytest.mark.parametrize("field", ["activations", "gradients", "weights"])
@pytest.mark.parametrize("name", ["int4", "", None, 8, ["raw"]])
def test_an_encoding_that_does_not_exist_is_refused(field: str, name: object) -> None:
    names: dict[str, object] = {field: name}
    with pytest.raises(ConfigError) as error:
        Encodings(**names)  # type: ignore[arg-type]
    assert f"the encoding of {field} is {name!r}; it is one of" in str(error.value)
    assert str(["raw", "bf16", "fp16", "int8"]) in str(error.value)


def test_what_a_request_says_is_read() -> None:
    encodings = Encodings(activations="int8", gradients="bf16", weights="fp16")
    config = encodings.to_config()
    assert config == {
        "activations-encoding": "int8",
        "gradients-encoding": "bf16",
        "weights-encoding": "fp16",
    }
    assert Encodings.from_config({**config, "phase": "forward"}) == encodings


@pytest.mark.parametrize("name", ["int4", None, 8])
def test_a_reader_says_what_it_does_not_know(name: object) -> None:
    config: dict[str, object] = {**Encodings().to_config(), "gradients-encoding": name}
    with pytest.raises(
        ProtocolError,
        match=rf"gradients is '{name}'; .*'raw', 'bf16', 'fp16', 'int8'\], as far.* Install",
    ):
        Encodings.from_config(config)


def test_a_reader_says_what_is_missing() -> None:
    with pytest.raises(ProtocolError, match="the encoding of weights is 'None'"):
        Encodings.from_config({"activations-encoding": "raw", "gradients-encoding": "raw"})
