"""The reference of the benchmarks."""

import torch

from simulations.bench_app.plain_loop import PlainLoop
from simulations.bench_app.workloads import WORKLOADS


def test_batches_are_the_global_batches_of_the_schedule() -> None:
    workload = WORKLOADS["cnn"]
    batches = PlainLoop(workload, num_clients=3).batches(1, max_steps=1000)
    schedule = workload.sampler.schedule(dict.fromkeys(range(3), 512), 1)
    assert [len(rows) for rows in batches] == schedule.effective_batch_sizes.tolist()
    for rows, step in zip(batches, schedule, strict=True):
        clients, counts = torch.unique(rows // 512, return_counts=True)
        assert dict(zip(clients.tolist(), counts.tolist(), strict=True)) == step
    assert sorted(torch.cat(batches).tolist()) == list(range(3 * 512))


def test_a_round_takes_the_steps_it_is_told_and_trains() -> None:
    workload = WORKLOADS["light"]
    loop = PlainLoop(workload, num_clients=2)
    before = [parameter.clone() for parameter in loop.model.parameters()]
    seconds = loop.run(1, max_steps=3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    after = loop.model.parameters()
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_model_and_data_are_the_same_every_time() -> None:
    for workload in WORKLOADS.values():
        states = [workload.build_model().state_dict() for _ in range(2)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert torch.equal(workload.client_data(3)[0], workload.client_data(3)[0])
        assert not torch.equal(workload.client_data(3)[0], workload.client_data(4)[0])
