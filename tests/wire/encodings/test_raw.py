import pytest
import torch

from flower_psl import ProtocolError
from flower_psl.wire.encodings.raw import Raw


def test_the_tensor_itself_travels() -> None:
    tensor = torch.rand(2, 3)
    (part,) = Raw().encode(tensor, 1, None)
    assert part is tensor
    assert Raw().decode([part], torch.float32, 1) is tensor


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"torch.float16 values; as they are, .*float32"):
        Raw().decode([torch.zeros(2, dtype=torch.float16)], torch.float32, 1)
