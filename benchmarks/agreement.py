"""Whether `headstart predict` and plain ONNX Runtime on the bare file say the same, over many pictures.

Ours may read a large JPEG at a reduced scale, the other side decodes at full scale: the difference includes that.
Pictures that cannot be decoded are counted by reason.
"""

from __future__ import annotations

import os
from collections import Counter

from measure import make_parser, report, round_figure, work_folder

from headstart.dataset import list_images
from headstart.verification import verify_classifier


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("model", help="classifier file")
    parser.add_argument(
        "folders", nargs="+", help="folders with pictures in them; at least 1,000 for a figure to quote"
    )
    args = parser.parse_args()
    paths, problems = list_images(args.folders)
    with work_folder():
        agreement = verify_classifier(args.model, paths)
    report(
        {
            "found": len(paths) + sum(problem.severity == "left-out" for problem in problems),
            "not_opened": dict(Counter(problem.code for problem in problems if problem.severity == "left-out")),
            "cannot_be_decoded": dict(Counter(failure.code for failure in agreement.left_out)),
            "compared": agreement.num_images,
            "same_class": agreement.num_same_class,
            "same_class_frac": agreement.num_same_class / max(agreement.num_images, 1),
            "largest_difference_of_a_probability": round_figure(agreement.worst_difference),
            "seen_on": os.path.basename(agreement.worst_path),
            "decoded_at_reduced_scale": agreement.num_reduced,
            "largest_difference_there_to_full_scale": round_figure(agreement.worst_reduced),
        }
    )


if __name__ == "__main__":
    main()
