"""The demo: rendered videos, a small two-stream SP-TAD trained from scratch on 2 CPU cores.

    make demo
"""

from sptad_jax.config import Config, DataConfig, InferenceConfig, ModelConfig, SyntheticConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            width_multiplier=0.25,
            bn_mode="train",
            bn_momentum=0.95,
            hidden_dim=96,
            num_proposals=16,
            soi_bins=8,
            num_heads=4,
            dynamic_dim=32,
            ffn_dim=192,
            num_stages=3,
        ),
        data=DataConfig(
            dataset_dir="runs/demo/dataset",
            train_subset="train",
            num_frames=128,
            crop_size=32,
            random_crop=False,  # frames are stored at the size of the crop
            stride_train=16,
            stride_test=64,
            max_targets=16,
            flip_prob=0.0,  # mirrored, clockwise becomes anti-clockwise
        ),
        train=TrainConfig(
            epochs=2,
            batch_size=8,
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=30,
            decay_mask="kernels",
            checkpoint_every=100,
        ),
        inference=InferenceConfig(),
        synthetic=SyntheticConfig(),
    )
