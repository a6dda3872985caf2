"""ResNet50 on pictures of 32 pixels, average pooling, the best epoch by validation accuracy."""

from headstart.recipes.recipe import KERAS_FIT, ParameterCounts, PublishedFigure, Recipe

RECIPE = Recipe(
    name="resnet50_cifar10",
    title="ResNet50 on CIFAR-10 at 32 pixels, average pooling, softmax",
    source=None,
    data="CIFAR-10: 50,000 pictures for training and 10,000 for the test, 32 x 32 pixels, 10 classes (`cifar10`)",
    num_classes=10,
    backbone="resnet50",
    train={
        "input_size_px": 32,
        "layers": "top",
        "head": "dense",
        "pooling": "average",
        "hidden": (),
        "dropout": (),
        "activation": "softmax",
    },
    fit={
        **KERAS_FIT,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "epochs": 10,
        "batch_size": 32,
        "patience": None,
        "monitor": "accuracy",
        "validation_frac": 0.1,
        "augment": "none",
        "num_views": 1,
    },
    finetune=None,
    feature_map=(1, 1, 2048),
    parameters=ParameterCounts(head=20_490, frozen=23_508_032),
    published=(
        PublishedFigure("frozen", "training accuracy", None, "tutorial not found"),
        PublishedFigure("frozen", "validation accuracy", None, "tutorial not found"),
        PublishedFigure("frozen", "test accuracy", None, "tutorial not found"),
    ),
    notes=(
        "Network, input size, pooling and the choice of the checkpoint are the tutorial's. Optimiser, rate, epochs, "
        "batch size and validation share were not found and are chosen here.",
        "At 32 pixels ResNet50 ends in a map of 1 x 1. A tutorial that first enlarges the pictures to 224 pixels "
        "publishes 89.94 % on validation (Mahdi Bani, Transfer Learning for CIFAR-10 Classification Using ResNet50).",
    ),
)
