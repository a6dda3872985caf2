"""VGG16 under average pooling, two dense layers with dropout, one sigmoid unit; then block 5 fine-tuned."""

from headstart.recipes.recipe import (
    CATS_AND_DOGS,
    KERAS_FIT,
    FinetuneStage,
    ParameterCounts,
    PublishedFigure,
    Recipe,
    Source,
)

RECIPE = Recipe(
    name="vgg16_average",
    title="VGG16, average pooling, dense 256 and 128 with dropout, sigmoid; then block 5",
    source=Source(
        title="Power of Transfer Learning (20 November 2018)",
        author="dudeperf3ct",
        address="https://github.com/dudeperf3ct/dudeperf3ct.github.io, "
        "_posts/2018-11-20-Power-of-Transfer-Learning.md at 8ffd0912",
    ),
    data=f"{CATS_AND_DOGS}: 4,000 for training and 800 for validation, drawn at random",
    num_classes=2,
    backbone="vgg16",
    train={
        "input_size_px": 224,
        "layers": "top",
        "head": "dense",
        "pooling": "average",
        "hidden": (256, 128),
        "dropout": (0.5, 0.7),
        "activation": "sigmoid",
    },
    fit={
        **KERAS_FIT,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "epochs": 50,
        "batch_size": 80,
        "patience": 5,
        "monitor": "accuracy",
        "validation_frac": 1 / 6,
        "augment": "tutorial",
        "num_views": 5,
    },
    finetune=FinetuneStage(
        from_layer="block5",
        fit={
            **KERAS_FIT,
            "optimizer": "sgd",
            "learning_rate": 1e-4,
            "momentum": 0.9,
            "epochs": 50,
            "batch_size": 80,
            "patience": 5,
            "monitor": "accuracy",
            "validation_frac": 1 / 6,
            "augment": "tutorial",
            "num_views": 5,
        },
    ),
    feature_map=(7, 7, 512),
    parameters=ParameterCounts(head=164_353, frozen=14_714_688, unfrozen=7_243_777),
    published=(
        PublishedFigure("frozen", "validation accuracy", 0.8938, "best of 14 epochs (the 9th); 800 pictures; one run"),
        PublishedFigure("frozen", "validation accuracy", 0.8912, "last of 14 epochs, which Keras kept; 800 pictures"),
        PublishedFigure("frozen", "training accuracy", 0.8780, "mean over the last epoch, augmented, with dropout"),
        PublishedFigure("fine-tuned", "validation accuracy", 0.9500, "best of 22 epochs (the 17th); 800 pictures"),
        PublishedFigure("fine-tuned", "validation accuracy", 0.9437, "last of 22 epochs, which Keras kept"),
        PublishedFigure("fine-tuned", "training accuracy", 0.9488, "mean over the last epoch, augmented, with dropout"),
        PublishedFigure("fine-tuned", "test accuracy", None, "the test pictures of the competition have no labels"),
    ),
    notes=(
        "The tutorial divided the pixels by 255 and did not use VGG16's own preprocessing, which the file here does.",
        "Its augmentation was a little stronger than `tutorial`: rotation 50 degrees, zoom 0.3.",
        "The best epoch by validation accuracy was chosen on the 800 pictures that the figure is about.",
    ),
)
