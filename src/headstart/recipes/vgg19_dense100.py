"""VGG19 with the head, the data and the training of vgg16_dense100."""

from dataclasses import replace

from headstart.recipes.recipe import ParameterCounts, PublishedFigure
from headstart.recipes.vgg16_dense100 import CONDITIONS
from headstart.recipes.vgg16_dense100 import RECIPE as VGG16

RECIPE = replace(
    VGG16,
    name="vgg19_dense100",
    title="VGG19, flatten, dense 100 three times, softmax",
    backbone="vgg19",
    parameters=ParameterCounts(head=2_529_302, frozen=20_024_384),
    published=(
        PublishedFigure("frozen", "validation accuracy", 0.9856, CONDITIONS),
        PublishedFigure("frozen", "training accuracy", 0.9959, "mean over the last of 5 epochs; 22,481 pictures"),
        PublishedFigure("frozen", "test accuracy", None, "the tutorial put no test part aside"),
    ),
)
