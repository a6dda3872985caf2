"""VGG16, flattened, three dense layers of 100 units."""

from headstart.recipes.recipe import CATS_AND_DOGS, KERAS_FIT, ParameterCounts, PublishedFigure, Recipe, Source

CONDITIONS = (
    "last of 5 epochs, 2,496 validation pictures of 24,977 (25,000 less some that the author removed by hand), "
    "flipped at random like the training pictures; one run"
)

RECIPE = Recipe(
    name="vgg16_dense100",
    title="VGG16, flatten, dense 100 three times, softmax",
    source=Source(
        title="Notebook dogs_vs_cats_transfer.ipynb of thedatafrog.com",
        author="Colin Bernet",
        address="https://github.com/cbernet/maldives, dogs_vs_cats/dogs_vs_cats_transfer.ipynb at 2371ecd5",
    ),
    data=CATS_AND_DOGS,
    num_classes=2,
    backbone="vgg16",
    train={
        "input_size_px": 224,
        "layers": "top",
        "head": "dense",
        "pooling": "flatten",
        "hidden": (100, 100, 100),
        "dropout": (),
        "activation": "softmax",
    },
    fit={
        **KERAS_FIT,
        "optimizer": "adamax",
        "learning_rate": 1e-3,
        "epochs": 5,
        "batch_size": 30,
        "patience": None,
        "validation_frac": 0.1,
        "augment": "flip",
        "num_views": 2,
    },
    finetune=None,
    feature_map=(7, 7, 512),
    parameters=ParameterCounts(head=2_529_302, frozen=14_714_688),
    published=(
        PublishedFigure("frozen", "validation accuracy", 0.9844, CONDITIONS),
        PublishedFigure("frozen", "training accuracy", 0.9968, "mean over the last of 5 epochs; 22,481 pictures"),
        PublishedFigure("frozen", "test accuracy", None, "the tutorial put no test part aside"),
    ),
    notes=("The notebook itself gives its accuracies of 98 % an uncertainty of 0.3 points.",),
)
