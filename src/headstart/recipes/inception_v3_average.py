"""InceptionV3 under average pooling with dropout straight before the softmax, on strongly changed pictures."""

from headstart.recipes.recipe import CATS_AND_DOGS, KERAS_FIT, ParameterCounts, PublishedFigure, Recipe

RECIPE = Recipe(
    name="inception_v3_average",
    title="InceptionV3, average pooling, dropout 0.4, softmax",
    source=None,
    data=f"{CATS_AND_DOGS}; how many the tutorial used was not found",
    num_classes=2,
    backbone="inception_v3",
    train={
        "input_size_px": 299,
        "layers": "top",
        "head": "dense",
        "pooling": "average",
        "hidden": (),
        "dropout": (0.4,),
        "activation": "softmax",
    },
    fit={
        **KERAS_FIT,
        "optimizer": "rmsprop",
        "learning_rate": 1e-3,
        "epochs": 5,
        "batch_size": 32,
        "patience": None,
        "validation_frac": 0.1,
        "augment": "tutorial",
        "num_views": 5,
    },
    finetune=None,
    feature_map=(8, 8, 2048),
    parameters=ParameterCounts(head=4_098, frozen=21_785_568),
    published=(
        PublishedFigure("frozen", "training accuracy", None, "tutorial not found"),
        PublishedFigure("frozen", "validation accuracy", None, "tutorial not found"),
        PublishedFigure("frozen", "test accuracy", None, "tutorial not found"),
    ),
    notes=(
        "Network, head, optimiser and augmentation are the tutorial's. The rate (Keras's default for RMSprop), epochs, "
        "batch size and validation share were not found and are chosen here.",
        "Keras counts 21,802,784 parameters below the head: its batch norm has no scale here (17,216 fewer), and its "
        "statistics are counted (34,432 more).",
    ),
)
