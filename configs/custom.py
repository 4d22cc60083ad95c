"""Your own videos: a small two-stream SP-TAD trained from scratch, sized for a CPU or a small GPU.

    python -m data_prep.custom --videos VIDEOS --annotations segments.json --output data/mine \
        --frame-size 56 --flow dis --bound 4 --flow-size 112
    python train.py --config configs/custom.py --workdir runs/mine --set data.dataset_dir=data/mine

Hardware: 2 cores, 6 GB; 0.9 steps a second on shared cores (measured). Small data wants many epochs: on motion16 (1.7
hours of video, 16 classes) these 4 epochs, 2556 steps, found the segments but left the classes at an average mAP of
10.8 (measured, with inference.combine=none and a slower start, see benchmarks/RESULTS.md); raise train.epochs to what
the time allows.
"""

from sptad_jax.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            width_multiplier=0.25,
            bn_mode="train",
            bn_momentum=0.97,
            hidden_dim=128,
            num_proposals=20,
            proposal_init="grid",
            soi_bins=8,
            num_heads=4,
            dynamic_dim=32,
            ffn_dim=256,
            dropout=0.1,
            num_stages=3,
        ),
        data=DataConfig(
            dataset_dir="data/mine",
            train_subset="train",
            num_frames=128,
            crop_size=48,
            stride_train=16,
            stride_test=64,
            max_targets=16,
            flip_negates_flow_x=True,
        ),
        loss=LossConfig(action_weight=2.0),
        train=TrainConfig(
            epochs=4,
            batch_size=4,
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=100,
            weight_decay=0.02,
            decay_mask="kernels",
            ema_decay=0.995,
            log_every=20,
            checkpoint_every=200,
        ),
    )
