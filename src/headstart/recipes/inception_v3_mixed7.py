"""InceptionV3 at 150 pixels cut at mixed7, one dense layer of 1024, one sigmoid unit; then mixed7 fine-tuned."""

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
    name="inception_v3_mixed7",
    title="InceptionV3 at 150 pixels from mixed7, dense 1024, dropout 0.2, sigmoid; then mixed7",
    source=Source(
        title="Cat vs. Dog Image Classification, Exercise 3: Feature Extraction and Fine-Tuning (2018)",
        author="Google, Machine Learning Practicum",
        address="https://github.com/google/eng-edu, ml/pc/exercises/image_classification_part3.ipynb at ab64b1df",
    ),
    data=f"{CATS_AND_DOGS}: 2,000 for training and 1,000 for validation (cats_and_dogs_filtered)",
    num_classes=2,
    backbone="inception_v3",
    train={
        "input_size_px": 150,
        "layers": "mixed7",
        "head": "dense",
        "pooling": "flatten",
        "hidden": (1024,),
        "dropout": (0.2,),
        "activation": "sigmoid",
    },
    fit={
        **KERAS_FIT,
        "optimizer": "rmsprop",
        "learning_rate": 1e-4,
        "epochs": 2,
        "batch_size": 20,
        "patience": None,
        "validation_frac": 0.1,
        "augment": "tutorial",
        "num_views": 2,
    },
    finetune=FinetuneStage(
        from_layer="mixed7",
        fit={
            **KERAS_FIT,
            "optimizer": "sgd",
            "learning_rate": 1e-5,
            "momentum": 0.9,
            "epochs": 50,
            "batch_size": 20,
            "patience": None,
            "validation_frac": 0.1,
            "augment": "tutorial",
            "num_views": 5,
        },
    ),
    feature_map=(7, 7, 768),
    parameters=ParameterCounts(head=38_537_217, frozen=8_965_856, unfrozen=40_679_169),
    published=(
        PublishedFigure("frozen", "validation accuracy", (0.88, 0.90), "after 2 epochs; 1,000 pictures; in the text"),
        PublishedFigure("frozen", "training accuracy", None, "stored without outputs"),
        PublishedFigure("fine-tuned", "validation accuracy", 0.92, "after 50 epochs more; 1,000 pictures; in the text"),
        PublishedFigure("fine-tuned", "training accuracy", None, "stored without outputs"),
        PublishedFigure("fine-tuned", "test accuracy", None, "the tutorial calls its validation pictures test images"),
    ),
    notes=(
        "The tutorial divided the pixels by 255; InceptionV3 was trained on -1 to 1, which the file here does.",
        "Keras counts 8,975,264 parameters up to mixed7: its batch norm has no scale here (9,408 fewer), and its "
        "statistics are counted (18,816 more).",
        "Here a tenth of the training pictures is kept for the choice between frozen and fine-tuned.",
    ),
)
