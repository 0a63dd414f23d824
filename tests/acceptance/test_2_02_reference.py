"""Line 2: the reference in PyTorch, as a user imports it: schedules, forward process, U-Net, losses, loops, rows."""

import subprocess
import sys

import numpy as np
import torch


def test_reference_needs_no_compiled_code():
    code = "import sys, ddpm_rt.reference as r; r.UNet; r.ddim; sys.exit('ddpm_rt._core' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_train_and_sample_a_point_with_the_reference_alone():
    """A U-Net learns one constant picture; DDPM and DDIM both return it: every part of the reference in one program."""
    import ddpm_rt.reference as ref

    torch.set_num_threads(1)
    torch.manual_seed(0)
    schedule = ref.Schedule.make("cosine", 50)
    cfg = ref.UNetConfig(
        (8, 8), in_channels=1, channels=16, channel_mult=(1,), res_blocks=1, attention=(0,), groups=4, num_classes=2
    )
    net = ref.UNet(cfg)
    picture = torch.zeros(1, 1, 8, 8)
    picture[..., 2:6, 2:6] = 0.8
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for k in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - k / 150)
        t, eps = torch.randint(50, (16,)), torch.randn(16, 1, 8, 8)
        x_t = schedule.q_sample(picture.expand(16, -1, -1, -1), t, eps)
        loss = ref.losses.per_image_mse(net(x_t, t, torch.zeros(16, dtype=torch.int64)), eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.from_numpy(ref.philox.noise(7, 0, (2, 1, 8, 8)))
    label = torch.zeros(2, dtype=torch.int64)
    network, times = ref.guided(net.eval(), label, 2, 1.0), ref.timesteps("leading", 50, 25)

    def z(row):
        return torch.from_numpy(ref.philox.noise(7, row, (2, 1, 8, 8), 1))

    with torch.no_grad():
        # eta = 1: a path without noise never forgets an early error of so small a network
        by_ddim = ref.ddim(network, schedule, x, times, z, eta=1.0)
        by_ddpm = ref.ddpm(network, schedule, x, times, z)
    for images in (by_ddim, by_ddpm):
        assert float((images - picture).square().mean()) < 0.02


def test_step_executor_runs_a_row_of_the_engines_layout():
    from ddpm_rt.reference.step import ROW, Evaluations, State, execute

    row = np.zeros(1, ROW)
    row["p"], row["q"], row["wx"][0, 2] = 2, -1, 1
    x, e = np.ones((1, 2, 2)), np.full((1, 2, 2), 0.5)
    assert ROW.itemsize == 256 and np.array_equal(
        execute(row[0], row[0], State(x), Evaluations(cond=e)).state.x, x * 1.5
    )
