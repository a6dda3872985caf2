"""The tutorials' Keras loop: a frozen network, a dense layer on top, epochs over the folders with validation.

As https://www.tensorflow.org/tutorials/images/transfer_learning has it, without its augmentation (which costs time) and
with random weights (which cost the accuracy, not the time).
"""

from __future__ import annotations

from task import Job

job = Job()

import tensorflow as tf  # noqa: E402


def main() -> None:
    job.mark_imports("tensorflow", "keras", "numpy")
    if job.is_rehearsal:
        job.leave()
    side, epochs = job.settings["side_px"], job.settings["epochs"]
    load = tf.keras.utils.image_dataset_from_directory
    train = load(str(job.train), shuffle=True, batch_size=32, image_size=(side, side))
    validation = load(str(job.validation), shuffle=False, batch_size=32, image_size=(side, side))
    num_classes = len(train.class_names)
    train = train.prefetch(tf.data.AUTOTUNE)
    validation = validation.prefetch(tf.data.AUTOTUNE)

    networks = tf.keras.applications
    module, build = {
        "MobileNetV2": (networks.mobilenet_v2, networks.MobileNetV2),
        "VGG16": (networks.vgg16, networks.VGG16),
    }[job.settings["network"]]
    base = build(input_shape=(side, side, 3), include_top=False, weights=None)
    base.trainable = False
    inputs = tf.keras.Input(shape=(side, side, 3))
    x = module.preprocess_input(inputs)
    x = base(x, training=False)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    x = tf.keras.layers.Dropout(0.2)(x)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(num_classes)(x))
    model.compile(
        optimizer=tf.keras.optimizers.Adam(1e-4),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    job.mark("data sets and model")
    history = model.fit(train, epochs=epochs, validation_data=validation, verbose=2)
    job.mark("epochs with validation")
    job.finish(accuracy=float(history.history["val_accuracy"][-1]))


if __name__ == "__main__":
    main()
