"""ResNet50 with the head, the data and the training of vgg16_dense100."""

from dataclasses import replace

from headstart.recipes.recipe import ParameterCounts, PublishedFigure
from headstart.recipes.vgg16_dense100 import CONDITIONS
from headstart.recipes.vgg16_dense100 import RECIPE as VGG16

RECIPE = replace(
    VGG16,
    name="resnet50_dense100",
    title="ResNet50, flatten, dense 100 three times, softmax",
    backbone="resnet50",
    feature_map=(7, 7, 2048),
    parameters=ParameterCounts(head=10_055_702, frozen=23_508_032),
    published=(
        PublishedFigure("frozen", "validation accuracy", 0.9824, CONDITIONS),
        PublishedFigure("frozen", "training accuracy", 0.9921, "mean over the last of 5 epochs; 22,481 pictures"),
        PublishedFigure("frozen", "test accuracy", None, "the tutorial put no test part aside"),
    ),
    notes=(
        *VGG16.notes,
        "The tutorial counts 23,587,712 parameters in the network below the head, torch 23,508,032: Keras has biases "
        "in the convolutions (26,560) and counts the statistics of batch norm (53,120).",
    ),
)
